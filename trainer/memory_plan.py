"""How much memory a rank will take, before anything is started: counted states, and activations measured in small.

What ZeRO keeps where is counted from the number of parameters (Rajbhandari et al. 2020, section 5).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trainer.activation_memory import measure_activations
from trainer.config import ModelConfig
from trainer.model.create import create_model, parameter_groups
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
    """How many numbers the model has: in all, and of them in matrices of the encoder's layers."""

    parameters: int
    in_matrices: int


def plan_memory(
    model: ModelConfig,
    *,
    optimizer: OptimizerConfig,
    micro_batch: MicroBatch,
    precision: str,
    zero_stage: int,
    dp_world_size: int,
    bucket_elements: int,
    program_bytes: int,
    resident: bool,
    candidates: int | None = None,
    recompute: bool = False,
) -> MemoryPlan:
    """The plan of the fullest rank; runs a few layers of the model in this process. `model.vocab_size` is set.

    `bucket_elements` bounds what is flattened for one collective, `program_bytes` is what a process takes before it
    has a model (0 where the memory of a GPU is meant); `resident` and `recompute` as for `measure_activations`,
    `candidates` the sequences of one pair prediction, if any.
    """
    weights = count_weights(model, candidates=candidates)
    states = plan_states(
        weights,
        optimizer=optimizer,
        half=precision != "fp32",
        zero_stage=zero_stage,
        dp_world_size=dp_world_size,
        bucket=min(weights.parameters, bucket_elements),
    )
    activations = measure_activations(model, documents=micro_batch.documents, precision=precision, resident=resident)
    # log-softmax saves its output; going back, the gradients of that and of the logits stand beside it.
    logits = 3 * _FP32_BYTES * micro_batch.predicted * (model.vocab_size or 0)
    return MemoryPlan(**states, activations_bytes=activations, logits_bytes=logits, program_bytes=program_bytes)


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


def count_weights(model: ModelConfig, *, candidates: int | None = None) -> Weights:
    """Weights of the encoder and its pretraining heads; tied ones count once."""
    with torch.device("meta"):
        network = create_model(model, seed=0, candidates=candidates)
    matrices = parameter_groups(network, weight_decay=0.0, muon=True)[0]["params"]
    return Weights(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        in_matrices=sum(parameter.numel() for parameter in matrices),
    )
