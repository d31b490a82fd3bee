"""Building token shards: raw text in, a folder of shards with manifest out, the same bytes by any number of workers.

The main process cuts the input into chunks and assembles what comes back, in input order; workers parse and
tokenize. An interrupted build keeps its finished shards and goes on behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from data_pipeline.atomic import write_atomically
from data_pipeline.blocks import BlockAssembler, default_block_tokens
from data_pipeline.build_pool import encode_in_order, suitable_workers
from data_pipeline.build_record import BuildRecord, begin_build
from data_pipeline.build_worker import EncodedChunk, EncodeJob
from data_pipeline.duplicates import SeenTexts
from data_pipeline.inputs import InputFile, expand_inputs
from data_pipeline.manifest import (
    FIELDS,
    FIELDS_WITH_WORDS,
    MANIFEST_FILE,
    SPLITS,
    TOKENIZER_FOLDER,
    Manifest,
    SplitName,
    load_manifest,
    manifest_bytes,
    token_dtype,
)
from data_pipeline.progress import BuildProgress
from data_pipeline.shard_writer import KEPT, ShardWriter, finished_shards
from data_pipeline.text import DEFAULT_MAX_DOCUMENT_BYTES, Chunk, DocumentRule, TextOptions, check_options, read_chunks
from data_pipeline.tokenizer import Tokenizer, copy_tokenizer
from data_pipeline.word_starts import WordStarts, check_word_starts
from trainer.errors import UserError

DEFAULT_SHARD_TOKENS = 67_108_864
DEFAULT_VALIDATION_FRACTION = 0.01


def build_shards(
    paths: Sequence[str | Path],
    *,
    tokenizer: str | Path,
    out: str | Path,
    workers: int | None = None,
    shard_tokens: int = DEFAULT_SHARD_TOKENS,
    block_tokens: int | None = None,
    validation_fraction: float = DEFAULT_VALIDATION_FRACTION,
    document: DocumentRule = "line",
    text_field: str = "text",
    word_starts: WordStarts = "vocabulary",
    deduplicate: bool = False,
    max_document_bytes: int = DEFAULT_MAX_DOCUMENT_BYTES,
    progress: bool = True,
    executor: Executor | None = None,
) -> Manifest:
    """Build token shards in the folder `out`, or go on with an interrupted build there; one process calls this.

    `workers` defaults to the cores this process may use (fewer for a small input), `block_tokens` to 98,304 (uint16)
    or 49,152 (uint32). `executor` is where chunks are tokenized instead of in own processes, `workers` of them at once.
    A finished build of the same input and settings returns at once. Raises UserError for bad input, other settings
    than those `out` was begun with, a full disk and a killed worker; finished shards are kept.
    """
    folder = Path(out)
    options = TextOptions(document, text_field, max_document_bytes)
    _check_settings(workers, shard_tokens, block_tokens, validation_fraction)
    check_word_starts(word_starts)
    files = expand_inputs(paths)
    workers = suitable_workers(sum(file.size for file in files)) if workers is None else workers
    check_options(files, options=options)
    loaded = Tokenizer.load(tokenizer)
    record = BuildRecord.of(
        files,
        tokenizer_sha256=loaded.sha256,
        shard_tokens=shard_tokens,
        block_tokens=block_tokens or default_block_tokens(token_dtype(loaded.vocab_size)),
        validation_fraction=validation_fraction,
        document=document,
        text_field=text_field,
        word_starts=word_starts,
        deduplicate=deduplicate,
    )
    job = EncodeJob(
        tokenizer=str(folder / TOKENIZER_FOLDER),
        options=options,
        validation_fraction=validation_fraction,
        done={},
        word_starts=word_starts,
        deduplicate=deduplicate,
        loaded=loaded,
    )
    with begin_build(folder, record=record) as already_built:
        if not already_built:
            copy_tokenizer(loaded, folder=folder / TOKENIZER_FOLDER)
            encode = partial(encode_in_order, workers=workers, executor=executor)
            _build(files, job=job, record=record, tokenizer=loaded, folder=folder, encode=encode, shown=progress)
    return load_manifest(folder)


def _build(
    files: list[InputFile],
    *,
    job: EncodeJob,
    record: BuildRecord,
    tokenizer: Tokenizer,
    folder: Path,
    encode: Callable[..., Generator[tuple[int, EncodedChunk], None, None]],
    shown: bool,
) -> None:
    finished = {split: finished_shards(folder, split=split) for split in SPLITS}
    done = {split: (end.chunk, end.document_in_chunk) for split, (_, end) in finished.items()}
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(
                ShardWriter(folder, split=split, shard_tokens=record.shard_tokens, finished=finished[split][0])
            )
            for split in SPLITS
        }
        bar = stack.enter_context(BuildProgress(total_bytes=sum(file.size for file in files), enabled=shown))
        encoded = stack.enter_context(closing(encode(_chunks(files, options=job.options), job=replace(job, done=done))))
        documents, duplicates = _write_shards(encoded, writers=writers, block_tokens=record.block_tokens, bar=bar)
    _check_splits(writers, fraction=record.validation_fraction, documents=documents, folder=folder)
    content = manifest_bytes(
        {split: writers[split].shards for split in SPLITS},
        block_tokens=record.block_tokens,
        vocab_size=tokenizer.vocab_size,
        tokenizer_sha256=tokenizer.sha256,
        special_token_ids=tokenizer.special_token_ids,
        input_documents=documents,
        fields=FIELDS if job.word_starts == "vocabulary" else FIELDS_WITH_WORDS,
        duplicate_documents=duplicates if job.deduplicate else None,
    )
    write_atomically(folder / MANIFEST_FILE, content, kept=KEPT)


def _write_shards(
    encoded_chunks: Iterable[tuple[int, EncodedChunk]],
    *,
    writers: dict[SplitName, ShardWriter],
    block_tokens: int,
    bar: BuildProgress,
) -> tuple[int, int]:
    """Assemble the chunks, in input order, into the shards of each split; gives the documents read, and duplicates.

    Of equal documents the first in input order stays. What a resumed build does not tokenize again is still read, so
    that it knows every text seen.
    """
    assemblers = {split: BlockAssembler(block_tokens=block_tokens) for split in SPLITS}
    seen = SeenTexts()
    documents = duplicates = 0
    for number, (done_bytes, encoded) in enumerate(encoded_chunks):
        new = None if encoded.digests is None else seen.add(encoded.digests)
        duplicates += 0 if new is None else int(np.count_nonzero(~new))
        for split, found in encoded.splits.items():
            part = found if new is None else found.only(new[found.places])
            for block in assemblers[split].add(part, chunk=number, documents_before=documents):
                writers[split].write(block)
        documents += encoded.documents
        tokens = sum(writer.tokens for writer in writers.values())
        bar.update(done_bytes=done_bytes, documents=documents, tokens=tokens)
    for split in SPLITS:
        for block in assemblers[split].finish():
            writers[split].write(block)
        writers[split].finish()
    return documents, duplicates


def _chunks(files: list[InputFile], *, options: TextOptions) -> Iterator[tuple[int, Chunk]]:
    """Every chunk of the input with the bytes of the input that are then behind."""
    before = 0
    for file in files:
        for chunk in read_chunks(file, options=options):
            yield before + chunk.input_position, chunk
        before += file.size


def _check_settings(
    workers: int | None, shard_tokens: int, block_tokens: int | None, validation_fraction: float
) -> None:
    for name, value in {"workers": workers, "shard-tokens": shard_tokens, "block-tokens": block_tokens}.items():
        if value is not None and value < 1:
            raise UserError(f"--{name} {value} is too small; it must be at least 1")
    if not 0.0 <= validation_fraction < 1.0:
        raise UserError(f"--validation-fraction {validation_fraction} is outside [0, 1); the usual one is 0.01")


def _check_splits(writers: dict[SplitName, ShardWriter], *, fraction: float, documents: int, folder: Path) -> None:
    again = f"then build into another folder, or remove {folder}"
    if documents == 0:
        raise UserError(f"the input holds no document, only blank lines; name files with text, {again}")
    if not writers["train"].tokens and not writers["validation"].tokens:
        raise UserError(f"none of the {documents} documents holds a token of the vocabulary; name other files, {again}")
    if not writers["train"].tokens:
        raise UserError(
            f"--validation-fraction {fraction} of {documents} documents leaves none to train on; lower it, {again}"
        )
    if fraction > 0.0 and not writers["validation"].tokens:
        raise UserError(
            f"--validation-fraction {fraction} of {documents} documents holds none out; "
            f"raise it, or set it to 0 for no validation part, {again}"
        )
