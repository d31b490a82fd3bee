"""The training step: a run of ours beside Hugging Face's Trainer over BertForMaskedLM, on the same text."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Literal

import numpy as np
import torch

from tests.benchmarks.hf_peers import Int64Array, framed, group_texts
from tests.benchmarks.material import Material, cut_to_length
from tests.benchmarks.own_training import OwnTraining, bench_config, mean_tokens
from tests.benchmarks.peer_process import PeerProcess, write_peer
from tests.benchmarks.report import Figure, Outcome
from tests.benchmarks.timing import Contender, paired_ratio, race
from trainer.config import Config, ModelConfig
from trainer.model.hf_config import to_hf_config
from trainer.runtime import started
from trainer.topology import topology_from_env

PeerKind = Literal["padded", "grouped"]

MINI = ModelConfig(hidden_size=256, num_layers=4, num_heads=4, intermediate_size=1024, max_positions=128)
BASE = ModelConfig(max_positions=512)
_PEER_NAMES: dict[PeerKind, str] = {
    "padded": "HF Trainer, padded, documents cut to a row",
    "grouped": "HF Trainer, group_texts, full rows",
}
_MOST_PEER_ROWS = 8192


@dataclass(frozen=True)
class StepCase:
    """What is trained on what: `peers` with the ratio wanted over each, `document_tokens` None for whole documents."""

    title: str
    shape: ModelConfig
    batch_rows: int
    peers: Mapping[PeerKind, float]
    document_tokens: int | None = None
    zero_stages: tuple[int, ...] = (0,)


STEP_CASES = {
    "step-mini": StepCase("BERT-mini at 128", MINI, 32, {"padded": 3.0, "grouped": 2.2}, zero_stages=(0, 1)),
    "step-base-rows": StepCase("BERT-base at 512, full rows", BASE, 4, {"grouped": 1.3}, document_tokens=512),
    "step-base-documents": StepCase(
        "BERT-base at 512, documents of 200 tokens", BASE, 4, {"grouped": 1.6}, document_tokens=200
    ),
}


def measure_step(
    case: StepCase, material: Material, *, peer_python: Path, cores: int, rounds: int, seconds: float = 2.5
) -> Outcome:
    """Tokens a second that are not padding, in fp32, with `cores` threads.

    Each side loads and masks its own batches, of about equally many tokens, at 15 %, clips the gradient's norm to 1
    and updates by torch's fused AdamW. The peers are processes of `peer_python` that wait while it is not their turn.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bertline-bench-")))
        if case.document_tokens is not None:
            material = cut_to_length(material, tokens=case.document_tokens, folder=folder)
        configs = {
            f"bertline, ZeRO-{stage}": bench_config(
                material.shards, case.shape, batch_rows=case.batch_rows, zero_stage=stage
            )
            for stage in case.zero_stages
        }
        config = next(iter(configs.values()))
        tokens = mean_tokens(config)
        peers: dict[str, PeerProcess] = {}
        # Before the start-up, whose environment variables would tell them that they are part of our job.
        for kind in case.peers:
            _write_peer(folder / kind, kind=kind, material=material, config=config, tokens=tokens)
            peers[_PEER_NAMES[kind]] = stack.enter_context(closing(PeerProcess(peer_python, folder / kind)))
        runtime = stack.enter_context(started(topology_from_env({}), deterministic=False))
        runs = {name: stack.enter_context(OwnTraining(own, runtime=runtime)) for name, own in configs.items()}
        contenders = [Contender(name, partial(_own_tokens, run)) for name, run in runs.items()]
        contenders += [Contender(name, peer.step) for name, peer in peers.items()]
        rates = race(contenders, rounds=rounds, seconds=seconds, label=case.title)
    return Outcome(
        title=f"Training step: {case.title}, about {tokens:,.0f} tokens an update, dropout 0.1, fp32, {cores} threads",
        unit="tokens",
        rates=rates,
        figures=_figures(rates, own=list(configs), peers=case.peers),
        remarks=(f"the peers' environment: {next(iter(peers.values())).versions}",),
    )


def _own_tokens(training: OwnTraining) -> int:
    return training.step().tokens


def _figures(
    rates: Mapping[str, Sequence[float]], *, own: Sequence[str], peers: Mapping[PeerKind, float]
) -> tuple[Figure, ...]:
    return tuple(
        Figure(f"{name} ÷ {_PEER_NAMES[kind]}", paired_ratio(rates[name], rates[_PEER_NAMES[kind]]), target=target)
        for name in own
        for kind, target in peers.items()
    )


def _write_peer(folder: Path, *, kind: PeerKind, material: Material, config: Config, tokens: float) -> None:
    """Lay out the documents in a random order as one kind of peer has them, in batches of about `tokens` tokens."""
    rows = list(itertools.islice(peer_rows(material, kind=kind, row_tokens=config.data.max_seq_len), _MOST_PEER_ROWS))
    write_peer(
        folder,
        rows,
        rows_as_lists=kind == "padded",
        batch_rows=max(1, round(tokens / mean(map(len, rows)))),
        model=to_hf_config(config.model, suffix="ForMaskedLM", dtype="float32"),
        tokenizer=material.tokenizer,
        use_cpu=not torch.cuda.is_available(),
    )


def peer_rows(material: Material, *, kind: PeerKind, row_tokens: int) -> Iterator[Int64Array]:
    """Rows without padding: each document cut to a row, or all of them laid end to end in full rows."""
    documents = list(material.read_tokens())
    shuffled = (documents[number] for number in np.random.default_rng(0).permutation(len(documents)))
    if kind == "grouped":
        return group_texts(shuffled, row_tokens=row_tokens)
    return (framed(tokens, longest=row_tokens) for tokens in shuffled)
