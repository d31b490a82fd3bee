"""A pretraining run that stands ready: what the loop needs, and what of it follows from the recipe's phases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from data_pipeline.batch import Batch
from data_pipeline.corpus import Corpus
from data_pipeline.damage import SkippedBlocks
from data_pipeline.hashing import Int64Array
from data_pipeline.phased_loader import PhasedLoader
from data_pipeline.vocabulary import load_tokenizer
from trainer.checkpoint import CheckpointStore
from trainer.checkpoint_files import CheckpointReader
from trainer.config import Config
from trainer.ds_config import DeepSpeedPlan
from trainer.evaluate import EvaluationResult, Validation
from trainer.example_fills import SHOWN_ROWS, example_fills
from trainer.flops import model_flops, recomputed_flops
from trainer.phases import Phase, phase_at, phases_of
from trainer.runtime import Runtime
from trainer.schedule import learning_rate
from trainer.spikes import SpikeGuard
from trainer.state import RunState
from trainer.step_protocol import Step


@dataclass
class PretrainingRun:
    """Everything the loop needs; `corpus` is what the rows come from."""

    config: Config
    runtime: Runtime
    corpus: Corpus
    ds_plan: DeepSpeedPlan
    engine: Step
    loader: PhasedLoader
    validation: Validation | None
    checkpoints: CheckpointStore
    state: RunState
    term_weights: Mapping[str, float]
    spikes: SpikeGuard | None
    patience: None = None

    @cached_property
    def phases(self) -> list[Phase]:
        """The recipe's phases in order."""
        return phases_of(self.config)

    @property
    def phase_first_step(self) -> int:
        """The step at which the phase of the last step began."""
        return phase_at(self.phases, self.state.step - 1).first_step

    @property
    def total_steps(self) -> int:
        """Global batches to consume in all."""
        return self.config.train.steps

    @property
    def log_every_steps(self) -> int:
        """As the recipe says."""
        return self.config.train.log_every_steps

    @property
    def log_layer_norms(self) -> bool:
        """As the recipe says."""
        return self.config.train.log_layer_norms

    @property
    def evaluate_every_steps(self) -> int | None:
        """None where nothing is evaluated."""
        return None if self.config.evaluation is None else self.config.evaluation.every_steps

    @property
    def source_names(self) -> list[str]:
        """The sources of the mixture."""
        return [source.name for source in self.corpus.sources]

    @property
    def skipped(self) -> SkippedBlocks | None:
        """The damaged blocks that were left out, where the recipe has them left out."""
        return self.corpus.skipped

    def learning_rate(self) -> float:
        """The rate of the next update, by the schedule of the run or of its present phase, which may begin with it."""
        state, phase = self.state, phase_at(self.phases, self.state.step)
        if state.step == phase.first_step:
            state.phase_applied_steps = 0
        return learning_rate(
            phase.config.schedule,
            peak=phase.config.optimizer.learning_rate,
            applied_steps=state.phase_applied_steps if phase.own_schedule else state.applied_steps,
            total_steps=phase.config.train.steps if phase.own_schedule else self.config.train.steps,
        )

    def evaluate(self, *, poll: Callable[[], None] | None) -> EvaluationResult:
        """Loss and accuracy on the held-out rows; collective, and only where there are such."""
        assert self.validation is not None
        return self.validation.run(self.engine.eval_step, poll=poll)

    def flops(self, batches: Sequence[Batch]) -> int:
        """Model FLOPs of training on some micro-batches."""
        return model_flops(self.config.model, **_sizes(batches))

    def hardware_flops(self, batches: Sequence[Batch]) -> int:
        """Model FLOPs and those of layers computed again, where the recipe says so (Chowdhery et al. 2022, app. B)."""
        recomputed = self.config.parallel.activation_checkpointing
        again = recomputed_flops(self.config.model, **_sizes(batches)) if recomputed else 0
        return self.flops(batches) + again

    def tokens_by_source(self, batches: Sequence[Batch]) -> Int64Array:
        """Real tokens of some micro-batches, int64 [sources]."""
        total: Int64Array = np.sum([batch.tokens_by_source(len(self.corpus.sources)) for batch in batches], axis=0)
        return total

    def examples(self, checkpoint: CheckpointReader) -> str | None:
        """How a checkpoint's model fills in the masks of the first held-out rows."""
        if self.validation is None:
            return None
        source = self.corpus.sources[0]
        return example_fills(
            checkpoint,
            config=self.config,
            rows=self.validation.first_rows(SHOWN_ROWS),
            tokenizer=load_tokenizer(source.folder, source.manifest),
        )

    def origin(self) -> dict[str, Any]:
        """What a checkpoint says of where the rows come from."""
        return {"shards": [str(source.folder.absolute()) for source in self.corpus.sources]}


def _sizes(batches: Sequence[Batch]) -> dict[str, int]:
    """What the FLOPs of some micro-batches depend on."""
    return {
        "tokens": sum(batch.tokens for batch in batches),
        "sum_squared_document_lengths": sum(batch.sum_squared_lengths for batch in batches),
        "predicted_tokens": sum(batch.predicted_tokens for batch in batches),
        "paired_sequences": sum(batch.paired_sequences for batch in batches),
    }
