"""The loader: ready rows of 512 on one core, beside webdataset and transformers' collator."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
import webdataset as wds

from data_pipeline.corpus import open_folder
from data_pipeline.from_recipe import loader_for, reader_for
from tests.benchmarks.hf_peers import group_texts, masking_collator
from tests.benchmarks.material import Material
from tests.benchmarks.report import Figure, Outcome
from tests.benchmarks.timing import Contender, paired_ratio, race
from trainer.config import Config, DataConfig, TrainConfig

ROW_TOKENS = 512
BATCH_ROWS = 32
_TARGET_TOKENS_A_SECOND = 5_000_000.0
_SHUFFLED_DOCUMENTS = 1000
_OURS = "bertline, packed and masked"
_WEBDATASET = "webdataset + group_texts + HF collator"
_COLLATOR_TENSORS = "HF collator alone, rows as tensors"
_COLLATOR_LISTS = "HF collator alone, rows as lists"


def measure_loader(material: Material, *, rounds: int, seconds: float = 1.0) -> Outcome:
    """Tokens a second that are not padding, each contender alone on the one core this process must be held to.

    A turn of ours is at least one whole epoch, so that each block's reading and packing is in it.
    """
    torch.manual_seed(0)
    ours = _OwnLoader(material.shards)
    with tempfile.TemporaryDirectory(prefix="bertline-bench-") as folder:
        tar = Path(folder) / "documents-000000.tar"
        _write_samples(tar, material=material)
        collate = masking_collator(material.tokenizer)
        ready = list(itertools.islice(group_texts(material.read_tokens(), row_tokens=ROW_TOKENS), BATCH_ROWS))
        lists = [{"input_ids": row.tolist()} for row in ready]
        tensors = [torch.from_numpy(row) for row in ready]
        contenders = [
            Contender(_OURS, ours.epoch),
            Contender(_WEBDATASET, _consumer(_webdataset_batches(tar, collate=collate))),
            Contender(_COLLATOR_TENSORS, lambda: _tokens(collate(list(tensors)))),
            Contender(_COLLATOR_LISTS, lambda: _tokens(collate(list(lists)))),
        ]
        try:
            rates = race(contenders, rounds=rounds, seconds=seconds, label="loader")
        finally:
            ours.close()
    own = rates[_OURS]
    ratios = [
        Figure(f"bertline ÷ {name}", paired_ratio(own, theirs)) for name, theirs in rates.items() if name != _OURS
    ]
    speed = Figure("ready tokens a core", median(own), target=_TARGET_TOKENS_A_SECOND, unit="tokens/s")
    return Outcome(
        title=f"Loader: rows of {ROW_TOKENS}, batches of {BATCH_ROWS}, one core",
        unit="tokens",
        rates=rates,
        figures=(speed, *ratios, Figure("share of a row that is not padding", ours.fill, unit="")),
        remarks=("bertline's turn is a whole epoch, reading and packing of every block included",),
    )


class _OwnLoader:
    """Our training loader, consumed an epoch at a time, as one process of one trains from it."""

    def __init__(self, shards: Path) -> None:
        config = Config(
            name="bench",
            data=DataConfig(shards=str(shards), max_seq_len=ROW_TOKENS),
            train=TrainConfig(steps=1, global_batch_size=BATCH_ROWS, micro_batch_size=BATCH_ROWS),
        )
        corpus = open_folder(shards)
        rows = reader_for(config, corpus, split="train", seed=0).rows_before_repeat
        self._steps_an_epoch = -(-rows // BATCH_ROWS)
        self._loader = loader_for(config, corpus, dp_rank=0, dp_world_size=1)
        self._tokens = 0
        self._positions = 0

    def epoch(self) -> int:
        """Consume one epoch; gives its tokens that are not padding."""
        tokens = 0
        for _ in range(self._steps_an_epoch):
            (batch,) = next(self._loader)
            for array in (batch.input_ids, batch.position_ids, batch.document_ids, batch.labels):
                torch.from_numpy(array)
            tokens += batch.tokens
            self._positions += batch.input_ids.size
        self._tokens += tokens
        return tokens

    @property
    def fill(self) -> float:
        """Share of the positions so far that are not padding."""
        return self._tokens / self._positions

    def close(self) -> None:
        """End the loader's thread."""
        self._loader.close()


def _write_samples(tar: Path, *, material: Material) -> None:
    """The same documents as webdataset's users store them: one sample a document."""
    with wds.TarWriter(str(tar)) as writer:
        for number, tokens in enumerate(material.read_tokens()):
            writer.write({"__key__": f"{number:08d}", "tokens.npy": tokens})


def _webdataset_batches(tar: Path, *, collate: Callable[[list[Any]], Any]) -> Iterator[Any]:
    def rows(documents: Iterator[tuple[Any]]) -> Iterator[torch.Tensor]:
        return map(torch.from_numpy, group_texts((tokens for (tokens,) in documents), row_tokens=ROW_TOKENS))

    dataset = (
        wds.WebDataset(str(tar), shardshuffle=False)
        .shuffle(_SHUFFLED_DOCUMENTS)
        .decode()
        .to_tuple("tokens.npy")
        .compose(rows)
        .batched(BATCH_ROWS, collation_fn=collate)
    )
    return itertools.chain.from_iterable(itertools.repeat(dataset))


def _consumer(batches: Iterator[Any]) -> Callable[[], int]:
    return lambda: _tokens(next(batches))


def _tokens(batch: Any) -> int:
    """Tokens of a collated batch of full rows."""
    return int(batch["input_ids"].numel())
