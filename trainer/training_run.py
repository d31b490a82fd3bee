"""What the training loop needs of a run, whether it pretrains or fine-tunes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from data_pipeline.damage import SkippedBlocks
from data_pipeline.hashing import Int64Array
from trainer.checkpoint import CheckpointStore
from trainer.checkpoint_files import CheckpointReader
from trainer.config import RunConfig
from trainer.ds_config import DeepSpeedPlan
from trainer.runtime import Runtime
from trainer.spikes import SpikeGuard
from trainer.state import RunState
from trainer.step_protocol import Step


class Loader(Protocol):
    """One rank's micro-batches of each global step, without end; they are `StepBatch`es of the run's own kind."""

    def __next__(self) -> Sequence[Any]: ...

    def state_dict(self) -> dict[str, Any]: ...


class Evaluated(Protocol):
    """What an evaluation found."""

    @property
    def score(self) -> float:
        """What decides the best checkpoint; less is better."""
        ...

    def metrics(self) -> dict[str, float]:
        """By metric key."""
        ...

    def summary(self) -> str:
        """For a person, on one line."""
        ...


class TrainingRun(Protocol):
    """A run that stands ready."""

    @property
    def config(self) -> RunConfig: ...

    @property
    def runtime(self) -> Runtime: ...

    @property
    def ds_plan(self) -> DeepSpeedPlan: ...

    @property
    def engine(self) -> Step: ...

    @property
    def loader(self) -> Loader: ...

    @property
    def checkpoints(self) -> CheckpointStore: ...

    @property
    def state(self) -> RunState: ...

    @property
    def term_weights(self) -> Mapping[str, float]: ...

    @property
    def spikes(self) -> SpikeGuard | None:
        """What watches for loss spikes, if anything."""
        ...

    @property
    def source_names(self) -> Sequence[str]:
        """What the training rows come from."""
        ...

    @property
    def skipped(self) -> SkippedBlocks | None:
        """The damaged blocks that were left out, where the recipe has them left out."""
        ...

    @property
    def phase_first_step(self) -> int:
        """The step at which the phase of the last step began; 0 where there are no phases."""
        ...

    @property
    def total_steps(self) -> int:
        """Global batches to consume in all."""
        ...

    @property
    def log_every_steps(self) -> int: ...

    @property
    def log_layer_norms(self) -> bool: ...

    @property
    def evaluate_every_steps(self) -> int | None:
        """None where nothing is evaluated."""
        ...

    @property
    def patience(self) -> int | None:
        """Evaluations in a row without a better one after which training ends early; None for never."""
        ...

    def learning_rate(self) -> float:
        """The rate of the next update."""
        ...

    def evaluate(self, *, poll: Callable[[], None] | None) -> Evaluated:
        """Evaluate the present weights; collective. `poll` is called after each batch."""
        ...

    def flops(self, batches: Sequence[Any]) -> int:
        """Model FLOPs of training on some micro-batches."""
        ...

    def tokens_by_source(self, batches: Sequence[Any]) -> Int64Array:
        """Real tokens of some micro-batches, int64 [sources]."""
        ...

    def examples(self, checkpoint: CheckpointReader) -> str | None:
        """What a checkpoint's model does with a few held-out rows, as Markdown, if there are any; not collective."""
        ...

    def origin(self) -> dict[str, Any]:
        """What a checkpoint says of where model and data come from."""
        ...
