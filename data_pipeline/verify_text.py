"""Comparing shards with the text they come from: documents drawn evenly are tokenized again, token for token."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_pipeline.blocks import EncodedDocuments
from data_pipeline.build_record import RECORD_FILE, BuildRecord, read_record
from data_pipeline.build_worker import EncodeJob, encode_documents, is_validation
from data_pipeline.damage import ShardDamage
from data_pipeline.duplicates import SeenTexts, text_digests
from data_pipeline.inputs import expand_inputs
from data_pipeline.inspect import spread
from data_pipeline.manifest import SPLITS, TOKENIZER_FOLDER, Manifest, SplitName
from data_pipeline.shards import BlockStore
from data_pipeline.text import TextOptions, parse_chunk, read_chunks
from trainer.errors import UserError


def find_differences(folder: Path, *, manifest: Manifest, paths: Sequence[str], sample: int) -> Iterator[str]:
    """One line for each of `sample` documents, drawn evenly, whose tokens are not in the shards where they belong.

    All of the text is read, for a document's place follows from the documents before it; only the drawn ones are
    tokenized. `paths` may have moved since the build. Raises UserError for bad text, and when build.json is missing.
    """
    record = read_record(folder)
    if record is None:
        raise UserError(
            f"{folder}/{RECORD_FILE}, which says how the text was read and split, is missing or of another version; "
            "copy it beside the shards"
        )
    comparison = _Comparison(folder, manifest=manifest, record=record)
    drawn = iter(spread(manifest.input_documents, wanted=sample))
    wanted = next(drawn, None)
    number = 0
    options = TextOptions(record.document, record.text_field, max_document_bytes=sys.maxsize)  # type: ignore[arg-type]
    for file in expand_inputs(paths):
        for chunk in read_chunks(file, options=options):
            documents = parse_chunk(chunk, options=options)
            places = []
            while wanted is not None and wanted < number + len(documents):
                places.append(wanted - number)
                wanted = next(drawn, None)
            for place, finding in comparison.compare(documents, places=places):
                yield f"{chunk.path}: document {number + place + 1:,} of the text: {finding}"
            number += len(documents)
    if number != manifest.input_documents:
        yield f"{', '.join(paths)}: the text holds {number:,} documents, and {manifest.input_documents:,} were built"


class _Comparison:
    """Walks text and shards side by side: knows how many documents of each split lie behind."""

    def __init__(self, folder: Path, *, manifest: Manifest, record: BuildRecord) -> None:
        self._fraction = record.validation_fraction
        self._seen = SeenTexts() if record.deduplicate else None
        self._job = EncodeJob(
            tokenizer=str(folder / TOKENIZER_FOLDER),
            options=TextOptions(),
            validation_fraction=record.validation_fraction,
            done={},
            word_starts=record.word_starts,  # type: ignore[arg-type]
        )
        self._stored = {split: _StoredDocuments(folder, manifest=manifest, split=split) for split in SPLITS}
        self._behind: dict[SplitName, int] = dict.fromkeys(SPLITS, 0)
        # Only a text without letters and digits can be without tokens; such are few, and tokenized to be sure.
        self._may_be_empty = manifest.dropped_documents > 0

    def compare(self, documents: Sequence[str], *, places: Sequence[int]) -> Iterator[tuple[int, str]]:
        """Pass a chunk's documents; gives (place, what is wrong) for those of `places` that differ."""
        held_out = is_validation(documents, fraction=self._fraction)
        kept = np.ones(len(documents), np.bool_) if self._seen is None else self._seen.add(text_digests(documents))
        if self._may_be_empty:
            kept &= self._with_tokens(documents)
        ordinals = {True: np.cumsum(kept & held_out), False: np.cumsum(kept & ~held_out)}
        chosen = [place for place in places if kept[place]]
        encoded = encode_documents(documents, np.array(chosen, np.uint32), job=self._job)
        ends = np.cumsum(encoded.lengths, dtype=np.int64)
        for place, end, length in zip(encoded.places.tolist(), ends.tolist(), encoded.lengths.tolist(), strict=True):
            split: SplitName = "validation" if held_out[place] else "train"
            ordinal = self._behind[split] + int(ordinals[bool(held_out[place])][place]) - 1
            finding = self._stored[split].difference(ordinal, wanted=encoded, tokens=slice(end - length, end))
            if finding is not None:
                yield place, finding
        self._behind["validation"] += int(np.count_nonzero(kept & held_out))
        self._behind["train"] += int(np.count_nonzero(kept & ~held_out))

    def _with_tokens(self, documents: Sequence[str]) -> npt.NDArray[np.bool_]:
        doubtful = [place for place, text in enumerate(documents) if not any(character.isalnum() for character in text)]
        encoded = encode_documents(
            documents, np.array(doubtful, np.uint32), job=replace(self._job, word_starts="vocabulary")
        )
        found = np.ones(len(documents), np.bool_)
        found[doubtful] = False
        found[encoded.places] = True
        return found


class _StoredDocuments:
    """The documents of one split by number, asked for in rising order."""

    def __init__(self, folder: Path, *, manifest: Manifest, split: SplitName) -> None:
        self._store = BlockStore(folder, manifest=manifest, split=split)
        self._block = self._before = 0

    def difference(self, ordinal: int, *, wanted: EncodedDocuments, tokens: slice) -> str | None:
        """How the split's document `ordinal` differs from the `tokens` of `wanted`; None when it does not."""
        while self._block < self._store.num_blocks:
            lengths = self._store.block_lengths(self._block)
            if ordinal < self._before + len(lengths):
                break
            self._before += len(lengths)
            self._block += 1
        else:
            return f"{self._store.split} holds only {self._before:,} documents, and this is number {ordinal + 1:,}"
        try:
            block = self._store.read_block(self._block, words=True)
        except ShardDamage as damage:
            return damage.finding
        local = ordinal - self._before
        start = int(block.lengths[:local].sum(dtype=np.int64))
        stored = slice(start, start + int(block.lengths[local]))
        where = f"{self._store.split} block {self._block}, document {local}"
        if not np.array_equal(block.tokens[stored], wanted.tokens[tokens]):
            return f"{where} holds other tokens: {_first_difference(block.tokens[stored], wanted.tokens[tokens])}"
        if block.word_starts is not None and wanted.word_starts is not None:
            mine, theirs = block.word_starts[stored], wanted.word_starts[tokens]
            if not np.array_equal(mine, theirs):
                return f"{where} holds other word starts: {_first_difference(mine, theirs)}"
        return None


def _first_difference(stored: npt.NDArray[np.generic], wanted: npt.NDArray[np.generic]) -> str:
    common = min(len(stored), len(wanted))
    differing = np.flatnonzero(stored[:common] != wanted[:common])
    if not len(differing):
        return f"{len(stored)} of them, where the text gives {len(wanted)}"
    place = int(differing[0])
    return f"token {place} is {stored[place]}, where the text gives {wanted[place]}"
