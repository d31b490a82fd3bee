"""Model FLOPs utilisation: the arithmetic a training step needs, by the second, over what matrix products reach."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

import torch

from tests.benchmarks.material import Material
from tests.benchmarks.own_training import OwnTraining, bench_config
from tests.benchmarks.report import Figure, Outcome
from tests.benchmarks.step import BASE
from tests.benchmarks.timing import Contender, paired_ratio, race
from trainer.config import ModelConfig
from trainer.flops import model_flops
from trainer.runtime import started
from trainer.topology import topology_from_env

_TARGETS = {0.0: 0.65, 0.1: 0.55}
_BATCH_ROWS = 8
_MATRIX_SIZE = 2048
_PEAK = f"matrix products of {_MATRIX_SIZE:,} squared"


def measure_utilization(
    material: Material,
    *,
    cores: int,
    rounds: int,
    seconds: float = 2.5,
    shape: ModelConfig = BASE,
    batch_rows: int = _BATCH_ROWS,
) -> Outcome:
    """MFLOP a second of training in fp32, ZeRO-0, and of plain matrix products in between, with `cores` threads.

    FLOPs are those of `trainer.flops`: attention by each document's own length, nothing for padding.
    """
    with ExitStack() as stack:
        runtime = stack.enter_context(started(topology_from_env({}), deterministic=False))
        contenders = [Contender(_PEAK, _matrix_product(runtime.device))]
        for rate in _TARGETS:
            own_shape = shape.model_copy(update={"hidden_dropout": rate, "attention_dropout": rate})
            config = bench_config(material.shards, own_shape, batch_rows=batch_rows, zero_stage=0)
            run = stack.enter_context(OwnTraining(config, runtime=runtime))
            contenders.append(Contender(_name(rate), partial(_train, run)))
        rates = race(contenders, rounds=rounds, seconds=seconds, label="MFU")
    return Outcome(
        title=f"Model FLOPs utilisation: {shape.num_layers} layers × {shape.hidden_size} at {shape.max_positions}, "
        f"{batch_rows} rows an update, fp32, {cores} threads",
        unit="MFLOP",
        rates=rates,
        figures=tuple(
            Figure(f"MFU, dropout {rate}", paired_ratio(rates[_name(rate)], rates[_PEAK]), target=target, unit="")
            for rate, target in _TARGETS.items()
        ),
        remarks=("attention is counted by the sum of the documents' squared lengths",),
    )


def _name(dropout: float) -> str:
    return f"bertline, dropout {dropout}"


def _matrix_product(device: torch.device) -> partial[int]:
    left, right = (torch.randn(_MATRIX_SIZE, _MATRIX_SIZE, device=device) for _ in range(2))
    return partial(_multiply, left, right)


def _multiply(left: torch.Tensor, right: torch.Tensor) -> int:
    float(torch.mm(left, right)[0, 0])  # waits for the device
    return 2 * len(left) ** 3 // 10**6


def _train(run: OwnTraining) -> int:
    batch = run.step()
    flops = model_flops(
        run.config.model,
        tokens=batch.tokens,
        sum_squared_document_lengths=batch.sum_squared_lengths,
        predicted_tokens=batch.predicted_tokens,
    )
    return flops // 10**6
