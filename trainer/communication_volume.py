"""What a step must send, by ZeRO stage and pipeline stages: the arithmetic that measured bytes stand beside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.config import Config
from trainer.memory_plan import StageShare
from trainer.model.encoder import vocab_size

WIDTHS = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class StepBytes:
    """Bytes that an average rank sends in a step.

    gradients, weights: to the other replicas. tied: of the gradient of the word embedding, which the first and the
    last stage hold. border: to the stages beside its own.
    """

    gradients: float
    weights: float
    tied: float
    border: float

    @property
    def total(self) -> float:
        return self.gradients + self.weights + self.tied + self.border


def step_bytes(
    config: Config,
    *,
    stages: Sequence[StageShare],
    zero_stage: int,
    dp_world_size: int,
    micro_batches: int,
    precision: str,
    communication_type: str = "fp32",
    all_reduces: bool = False,
) -> StepBytes:
    """What a resolved recipe's step sends on a ring, in which a sum or a gathering passes (n - 1) / n of the data on.

    With one micro-batch these are the 2 elements a parameter of ZeRO stages 0 to 2 and the 3 of stage 3 (Rajbhandari
    et al. 2020, section 7). Of more, stage 2, which keeps a part of the gradients only, reduces each one's, and
    stage 3 gathers the weights twice for each as well. `all_reduces`: stages 1 and 2 reduce gradients to all ranks
    and not to their owners, which sends twice as much.
    """
    weight_bytes, gradient_bytes = WIDTHS[precision], WIDTHS[communication_type]
    parameters = sum(stage.weights.parameters for stage in stages) / len(stages)
    share = (dp_world_size - 1) / dp_world_size
    gradient_passes, weight_passes = {
        0: (2, 0),
        1: (1, 1),
        2: (micro_batches, 1),
        3: (micro_batches, 2 * micro_batches),
    }[zero_stage]
    if all_reduces and zero_stage in (1, 2):
        gradient_passes *= 2
    tied = border = 0.0
    if len(stages) > 1:
        holders = 2 * dp_world_size
        matrix = vocab_size(config.model) * config.model.hidden_size
        tied = 2 * (holders - 1) / holders * matrix * gradient_bytes * 2 / len(stages)
        border = border_bytes(config, hidden_bytes=weight_bytes) * micro_batches * (len(stages) - 1) / len(stages)
    return StepBytes(
        gradients=parameters * share * gradient_passes * gradient_bytes,
        weights=parameters * share * weight_passes * weight_bytes,
        tied=tied,
        border=border,
    )


def border_bytes(config: Config, *, hidden_bytes: int) -> int:
    """What crosses the border between two stages for one micro-batch: hidden states and, on the way back, their
    gradient; document ids (int32) and each kind of labels (int64)."""
    positions = config.train.micro_batch_size * config.data.max_seq_len
    kinds_of_labels = 1 if config.objective.pairs == "none" else 2
    return positions * (2 * config.model.hidden_size * hidden_bytes + 4 + 8 * kinds_of_labels)
