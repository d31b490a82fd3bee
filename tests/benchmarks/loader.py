"""The loader: ready rows of 512 on one core, beside others' loaders with the masking collator of transformers."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np
import torch

from data_pipeline.corpus import open_folder
from data_pipeline.from_recipe import loader_for, reader_for
from data_pipeline.phased_loader import PhasedLoader
from tests.benchmarks import peer_loaders
from tests.benchmarks.hf_peers import fast_tokenizer, framed
from tests.benchmarks.loader_memory import measure_memory
from tests.benchmarks.material import Material
from tests.benchmarks.peer_loaders import BATCH_ROWS, ROW_TOKENS
from tests.benchmarks.peer_process import PeerProcess
from tests.benchmarks.report import Figure, Outcome
from tests.benchmarks.timing import Contender, paired_ratio, race
from trainer.config import Config, DataConfig, TrainConfig
from trainer.data_config import DEFAULT_LANES
from trainer.objective_config import ObjectiveConfig

_TARGET_TOKENS_A_SECOND = 10_000_000.0
_TARGET_OVER_LOADERS = 15.0
_LEAST_WHOLE_WORD_SHARE = 0.5
_LEAST_FILL = 0.995
_MOST_RESUME_S = 1.0
_STEPS = 10_000_000
# More than any of them passes in its turns, so that none of them has all in a cache, and stored in seconds.
_PEERS_DOCUMENTS = 50_000
_OURS = "bertline, packed and masked"
_WHOLE_WORD = "bertline, whole words masked"
_SPANS = "bertline, spans masked"
_LOADERS = {
    "webdataset": "webdataset + group_texts + HF collator",
    "mosaicml": "MosaicML streaming + HF collator",
    "datasets": "HF datasets streaming + HF collator",
    "energon": "Megatron-Energon, packing + HF collator",
}
_PEERS = {
    **_LOADERS,
    "collator_tensors": "HF collator alone, rows as tensors",
    "collator_lists": "HF collator alone, rows as lists",
}


def measure_loader(
    material: Material,
    *,
    peer_python: Path,
    rounds: int,
    seconds: float = 1.0,
    peers: Sequence[str] = tuple(_PEERS),
    memory_blocks: Sequence[int] = (20, DEFAULT_LANES + 240),
) -> Outcome:
    """Tokens a second that are not padding, each contender alone on the one core this process must be held to.

    A turn of ours is at least one whole epoch, so that each block's reading and packing is in it. The peers are
    processes of `peer_python` that wait while it is not their turn. The memory is that of a rank alone on shards of
    `memory_blocks` blocks, fewer and more than it has lanes.
    """
    torch.manual_seed(0)
    own = {
        _OURS: _OwnLoader(material.shards),
        _WHOLE_WORD: _OwnLoader(material.shards, masking="whole_word"),
        _SPANS: _OwnLoader(material.shards, masking="span"),
    }
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bertline-bench-")))
        for loader in own.values():
            stack.callback(loader.close)
        _write_documents(folder, material=material)
        started = {
            _PEERS[name]: stack.enter_context(
                closing(PeerProcess(peer_python, folder, program=(peer_loaders.__file__, name)))
            )
            for name in peers
        }
        contenders = [
            *(Contender(name, loader.epoch) for name, loader in own.items()),
            *(Contender(name, peer.step) for name, peer in started.items()),
        ]
        rates = race(contenders, rounds=rounds, seconds=seconds, label="loader")
        resumed = [own[_OURS].seconds_to_first_batch(step) for step in (1, 1_000_000)]
    versions = "peers: " + " · ".join(peer.versions for peer in started.values())
    return Outcome(
        title=f"Loader: rows of {ROW_TOKENS}, batches of {BATCH_ROWS}, one core",
        unit="tokens",
        rates=rates,
        figures=(
            *_speed_figures(rates, loaders=[_PEERS[name] for name in peers if name in _LOADERS]),
            Figure("share of a row that is not padding", own[_OURS].fill, target=_LEAST_FILL, unit=""),
            Figure("from opening the shards to the batch behind step 1", resumed[0], limit=_MOST_RESUME_S, unit="s"),
            Figure("... behind step 1,000,000", resumed[1], limit=_MOST_RESUME_S, unit="s"),
            *map(measure_memory, memory_blocks),
        ),
        remarks=(
            "bertline's turn is a whole epoch, reading and packing of every block included",
            f"the peers read {_PEERS_DOCUMENTS:,} documents; MosaicML's and datasets' rows were grouped beforehand",
            versions,
        ),
    )


def _speed_figures(rates: dict[str, list[float]], *, loaders: Sequence[str]) -> list[Figure]:
    own = rates[_OURS]
    best = [max(of_round) for of_round in zip(*(rates[name] for name in loaders), strict=True)]
    others = [name for name in rates if name in _PEERS.values()]
    return [
        Figure("ready tokens a core", median(own), target=_TARGET_TOKENS_A_SECOND, unit="tokens/s"),
        Figure("bertline ÷ the best of the other loaders", paired_ratio(own, best), target=_TARGET_OVER_LOADERS),
        *(Figure(f"bertline ÷ {name}", paired_ratio(own, rates[name])) for name in others),
        Figure("whole words ÷ tokens masked", paired_ratio(rates[_WHOLE_WORD], own), target=_LEAST_WHOLE_WORD_SHARE),
        Figure("spans ÷ tokens masked", paired_ratio(rates[_SPANS], own)),
    ]


def _write_documents(folder: Path, *, material: Material) -> None:
    """What `peer_loaders` reads: the first documents, framed, and our tokenizer as transformers' own kind."""
    documents = [framed(tokens) for tokens in itertools.islice(material.read_tokens(), _PEERS_DOCUMENTS)]
    np.savez(folder / "documents.npz", tokens=np.concatenate(documents), lengths=[len(one) for one in documents])
    fast_tokenizer(material.tokenizer).save_pretrained(folder / "tokenizer")


class _OwnLoader:
    """Our training loader, consumed an epoch at a time, as one process of one trains from it."""

    def __init__(self, shards: Path, *, masking: Literal["token", "whole_word", "span"] = "token") -> None:
        config = Config(
            name="bench",
            data=DataConfig(shards=str(shards), max_seq_len=ROW_TOKENS),
            objective=ObjectiveConfig(masking=masking),
            train=TrainConfig(steps=_STEPS, global_batch_size=BATCH_ROWS, micro_batch_size=BATCH_ROWS),
        )
        rows = reader_for(config, open_folder(shards), split="train", seed=0).rows_before_repeat
        self._steps_an_epoch = -(-rows // BATCH_ROWS)
        self._shards, self._config = shards, config
        self._loader = self._open()
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

    def _open(self) -> PhasedLoader:
        return loader_for(self._config, open_folder(self._shards), dp_rank=0, dp_world_size=1)

    def seconds_to_first_batch(self, step: int) -> float:
        """What a run waits for that goes on behind `step`: opening the shards, seeking, one batch."""
        started = time.perf_counter()
        loader = self._open()
        loader.seek(step)
        next(loader)
        seconds = time.perf_counter() - started
        loader.close()
        return seconds

    @property
    def fill(self) -> float:
        """Share of the positions so far that are not padding."""
        return self._tokens / self._positions

    def close(self) -> None:
        """End the loader's thread."""
        self._loader.close()
