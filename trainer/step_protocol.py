"""What the training loop sees of an engine, whatever the layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from trainer.fragments import EngineState, StateSource
from trainer.part_clock import PartClock
from trainer.step_sums import StepBatch, StepSums


class Step(Protocol):
    """One global step at a time. Every method is collective: all ranks call it, in the same order.

    All ranks of one replica (`Topology.dp_rank`) are given the same batches. The sums of all ranks together are
    those of the whole global batch.
    """

    def train_step(
        self,
        batches: Sequence[StepBatch],
        *,
        step: int,
        learning_rate: float,
        accept: Callable[[StepSums], bool] | None = None,
    ) -> StepSums:
        """Consume one global batch and update the weights once; gives this rank's sums without waiting for them.

        The gradient is that of the loss of `trainer.step_sums` over the whole global batch, however it is split.
        Dropout is a function of (seed, step, rank): nothing about random numbers needs to be saved. `accept` sees
        the sums before the update and has all ranks leave it out by answering False.
        """
        ...

    def eval_step(self, batch: StepBatch) -> StepSums:
        """This rank's sums over one micro-batch, without gradients or dropout."""
        ...

    def timed_parts(self, clock: PartClock) -> AbstractContextManager[None]:
        """Tell a clock of each forward and backward pass and optimiser update of the steps taken inside."""
        ...

    def averaged_weights(self) -> AbstractContextManager[None]:
        """Compute with the weights' moving average where one is kept, with the weights themselves again afterwards."""
        ...

    @property
    def was_applied(self) -> bool:
        """Whether the last step changed the weights; one that was not accepted, or overflows in fp16, does not."""
        ...

    @property
    def gradient_norm(self) -> float:
        """L2 norm of the last step's gradient before clipping. Waits for the device."""
        ...

    @property
    def loss_scale(self) -> float:
        """The factor that fp16 losses are multiplied by; 1 in other precisions."""
        ...

    def read_forward_s(self) -> float:
        """Mean seconds of this rank's forward pass of a micro-batch since the last reading; not collective."""
        ...

    def layer_norms(self) -> dict[str, float]:
        """Norms of weights and of the optimiser's first moments by metric key, as `trainer.layer_norms` has them."""
        ...

    def locate_non_finite(self) -> str | None:
        """Where a NaN or an infinity was first seen: step, rank and place; None where it was in no step."""
        ...

    def state(self, *, weights_only: bool = False) -> EngineState:
        """This rank's part of the state, copied to host memory; together the ranks hold every element once."""
        ...

    def load_state(self, source: StateSource) -> None:
        """Take over master weights, their average, optimiser and loss scaler from a checkpoint saved in any layout.

        A moving average that the checkpoint does not hold begins at its weights.
        """
        ...

    def close(self) -> None:
        """Release what DeepSpeed holds, so that another engine may be made in this process."""
        ...
