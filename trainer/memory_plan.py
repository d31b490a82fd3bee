"""How much memory a rank will take, before anything is started: counted states, and activations measured in small.

What ZeRO keeps where is counted from the number of parameters (Rajbhandari et al. 2020, section 5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from trainer.activation_memory import Activations, measure_activations
from trainer.config import ModelConfig
from trainer.model.create import create_model, parameter_groups
from trainer.model.encoder import vocab_size
from trainer.model.pipeline_stage import Stage
from trainer.optimizer_config import MuonConfig, OptimizerConfig, SGDConfig

_FP32_BYTES = 4
# Bytes an element of the bucket, by (half precision, ZeRO stage).
_COMMUNICATION_BYTES = {
    (False, 0): 4.0,
    (False, 1): 6.0,
    (False, 2): 6.0,
    (False, 3): 6.0,
    (True, 1): 6.4,
    (True, 2): 8.4,
    (True, 3): 10.0,
}


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes a rank by what they are for; `peak_bytes` is their sum."""

    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    average_bytes: int
    communication_bytes: int
    activations_bytes: int
    logits_bytes: int
    program_bytes: int

    @property
    def peak_bytes(self) -> int:
        """What the rank takes at most: in the middle of a step, when nothing of this has been let go."""
        return sum(vars(self).values())


@dataclass(frozen=True)
class MicroBatch:
    """One micro-batch of a rank: the lengths of its documents, in tokens, and how many tokens are `predicted`."""

    documents: tuple[int, ...]
    predicted: int


@dataclass(frozen=True)
class Weights:
    """How many numbers a model has: in all, and of them in matrices of the encoder's layers; tied ones count once."""

    parameters: int
    in_matrices: int


@dataclass(frozen=True)
class StageShare:
    """What the ranks of one pipeline stage hold, and of how many micro-batches at a time."""

    weights: Weights
    layers: int
    has_head: bool
    in_flight: int


def plan_memory(
    model: ModelConfig,
    *,
    optimizer: OptimizerConfig,
    stages: Sequence[StageShare],
    micro_batch: MicroBatch,
    precision: str,
    zero_stage: int,
    dp_world_size: int,
    bucket_elements: int,
    program_bytes: int,
    resident: bool,
    recompute: bool = False,
) -> MemoryPlan:
    """The plan of the fullest stage's ranks; runs a few layers of the model in this process. `vocab_size` is set.

    `bucket_elements` bounds what is flattened for one collective, `program_bytes` is what a process takes before it
    has a model (0 where the memory of a GPU is meant); `resident` and `recompute` as for `measure_activations`.
    """
    return plan_with_activations(
        measure_activations(
            model, documents=micro_batch.documents, precision=precision, resident=resident, recompute=recompute
        ),
        logits=micro_batch.predicted * vocab_size(model),
        optimizer=optimizer,
        stages=stages,
        half=precision != "fp32",
        zero_stage=zero_stage,
        dp_world_size=dp_world_size,
        bucket_elements=bucket_elements,
        program_bytes=program_bytes,
    )


def plan_with_activations(
    activations: Activations,
    *,
    logits: int,
    optimizer: OptimizerConfig,
    stages: Sequence[StageShare],
    half: bool,
    zero_stage: int,
    dp_world_size: int,
    bucket_elements: int,
    program_bytes: int,
) -> MemoryPlan:
    """`plan_memory` where a micro-batch's activations are known, and how many `logits` it has."""
    # log-softmax saves its output; going back, the gradients of that and of the logits stand beside it.
    logits_bytes = 3 * _FP32_BYTES * logits
    plans = [
        MemoryPlan(
            **plan_states(
                stage.weights,
                optimizer=optimizer,
                half=half,
                zero_stage=zero_stage,
                dp_world_size=dp_world_size,
                bucket=min(stage.weights.parameters, bucket_elements),
            ),
            activations_bytes=max(0, activations.of_layers(stage.layers)) * stage.in_flight,
            logits_bytes=logits_bytes if stage.has_head else 0,
            program_bytes=program_bytes,
        )
        for stage in stages
    ]
    return max(plans, key=lambda plan: plan.peak_bytes)


def plan_stages(
    model: ModelConfig, *, bounds: Sequence[int], micro_batches: int, candidates: int | None = None
) -> list[StageShare]:
    """What each stage holds of a model cut at `bounds` (`trainer.setup.stage_bounds`), one stage being all of it.

    Stage k of n has up to n - k micro-batches under way at a time (Narayanan et al. 2019, the one-forward-one-backward
    schedule). `candidates`: the sequences of one pair prediction, if any.
    """
    with torch.device("meta"):
        network = create_model(model, seed=0, candidates=candidates)
    matrices = {id(one) for one in parameter_groups(network, weight_decay=0.0, muon=True)[0]["params"]}
    num_stages, head = len(bounds) - 1, model.num_layers + 1
    shares = []
    for number, (first, last) in enumerate(pairwise(bounds)):
        held = network if num_stages == 1 else Stage(network, first=first, last=last)
        parameters = list(held.parameters())
        shares.append(
            StageShare(
                weights=Weights(
                    parameters=sum(one.numel() for one in parameters),
                    in_matrices=sum(one.numel() for one in parameters if id(one) in matrices),
                ),
                layers=min(last, head) - max(first, 1),
                has_head=last == head + 1,
                in_flight=min(num_stages - number, micro_batches),
            )
        )
    return shares


def plan_states(
    weights: Weights, *, optimizer: OptimizerConfig, half: bool, zero_stage: int, dp_world_size: int, bucket: int
) -> dict[str, int]:
    """Bytes of weights, gradients, optimiser, averaged weights and communication on one rank.

    Under ZeRO an fp32 copy of the weights is the optimiser's. What the engine flattens and copies for its collectives
    was measured (DeepSpeed 0.19.8, 33 M weights, 1 and 2 processes) in bytes an element of the bucket.
    """
    parameters = weights.parameters
    shares = 1 if zero_stage == 0 else dp_world_size
    width = 2 if half else _FP32_BYTES
    split_weights, split_gradients = zero_stage == 3, zero_stage >= 2
    gradients = parameters * width
    if half:
        gradients += parameters * _FP32_BYTES // (dp_world_size if split_gradients else 1)
    elif split_weights:
        gradients += parameters * _FP32_BYTES // dp_world_size
    copy = parameters * _FP32_BYTES if zero_stage > 0 else 0
    average = parameters * _FP32_BYTES if optimizer.ema_decay is not None else 0
    # Stage 3 brings the weights that it works with together again.
    gathered = bucket * width if split_weights else 0
    return {
        "weights_bytes": parameters * width // (dp_world_size if split_weights else 1),
        "gradients_bytes": gradients,
        "optimizer_bytes": (copy + optimizer_state_bytes(optimizer, weights=weights)) // shares,
        "average_bytes": average // shares,
        "communication_bytes": int(bucket * _COMMUNICATION_BYTES[half, zero_stage]) + gathered,
    }


def optimizer_state_bytes(optimizer: OptimizerConfig, *, weights: Weights) -> int:
    """Bytes of what an optimiser keeps of all weights in fp32: one or two running means, or nothing."""
    match optimizer:
        case SGDConfig():
            means = weights.parameters if optimizer.momentum > 0.0 else 0
        case MuonConfig():
            means = weights.in_matrices + 2 * (weights.parameters - weights.in_matrices)
        case _:
            means = 2 * weights.parameters
    return means * _FP32_BYTES


def checkpoint_bytes(optimizer: OptimizerConfig, *, weights: Weights, weights_only: bool) -> int:
    """Bytes of a checkpoint on disk, in every layout: fp32 weights, their average, and the optimiser's state."""
    copies = 1 + (optimizer.ema_decay is not None)
    state = 0 if weights_only else optimizer_state_bytes(optimizer, weights=weights)
    return weights.parameters * _FP32_BYTES * copies + state
