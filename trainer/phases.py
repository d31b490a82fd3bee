"""What a run does when: its phases one after the other, and how many rows each step's global batch has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.config import Config, PhaseConfig, TrainConfig
from trainer.errors import UserError
from trainer.topology import BatchPlan, plan_batches


@dataclass(frozen=True)
class BatchSizes:
    """Rows in a global batch: `final`, but for steps below `until`, for each (until, rows) of `warmup` in turn."""

    warmup: tuple[tuple[int, int], ...]
    final: int

    def at(self, step: int) -> int:
        """Rows of the batch that takes a phase from `step` to `step` + 1."""
        return next((rows for until, rows in self.warmup if step < until), self.final)

    def stages(self) -> list[tuple[int, int]]:
        """(first step, rows) of each size in turn."""
        starts = [0, *(until for until, _ in self.warmup)]
        return list(zip(starts, [*(rows for _, rows in self.warmup), self.final], strict=True))

    def rows_before(self, step: int) -> int:
        """Rows of all batches before `step`; the same cost for every step."""
        total = start = 0
        for until, rows in (*self.warmup, (step, self.final)):
            end = max(start, min(until, step))
            total += rows * (end - start)
            start = end
        return total

    def steps_within(self, rows: int) -> int:
        """How many whole batches so many rows are enough for."""
        steps = 0
        for until, size in self.warmup:
            fitting = min(until - steps, rows // size)
            steps += fitting
            rows -= fitting * size
            if steps < until:
                return steps
        return steps + rows // self.final


@dataclass(frozen=True)
class Phase:
    """A stretch of a run, with a recipe of its own: `config` has no phases, and `train.steps` is the phase's length.

    own_schedule: the schedule counts the phase's steps, rather than the run's.
    """

    number: int
    first_step: int
    config: Config
    own_schedule: bool

    @property
    def batch_sizes(self) -> BatchSizes:
        """The sizes of the phase's batches, steps counted since it began."""
        train = self.config.train
        warmup = tuple((stage.until_step, stage.global_batch_size) for stage in train.batch_warmup)
        return BatchSizes(warmup=warmup, final=train.global_batch_size)


def phases_of(config: Config) -> list[Phase]:
    """The phases of a recipe in order; one that names none is a single phase."""
    if not config.phases:
        return [Phase(number=0, first_step=0, config=config, own_schedule=False)]
    phases: list[Phase] = []
    first_step = 0
    for number, section in enumerate(config.phases):
        own = section.schedule is not None
        phases.append(Phase(number, first_step, _phase_recipe(config, section), own_schedule=own))
        first_step += section.steps
    return phases


def phase_at(phases: Sequence[Phase], step: int) -> Phase:
    """The phase that the batch after `step` steps is of; the last one when the run is over."""
    return [phase for phase in phases if phase.first_step <= step][-1]


def _phase_recipe(config: Config, section: PhaseConfig) -> Config:
    """The recipe as one phase sees it: what the phase does not set is the recipe's."""
    train = TrainConfig(
        steps=section.steps,
        global_batch_size=section.global_batch_size or config.train.global_batch_size,
        micro_batch_size=section.micro_batch_size or config.train.micro_batch_size,
        batch_warmup=section.batch_warmup,
        log_every_steps=config.train.log_every_steps,
        log_layer_norms=config.train.log_layer_norms,
    )
    data = {} if section.max_seq_len is None else {"max_seq_len": section.max_seq_len}
    objective = {} if section.mask_rate is None else {"mask_rate": section.mask_rate}
    optimizer = {} if section.learning_rate is None else {"learning_rate": section.learning_rate}
    return config.model_copy(
        update={
            "phases": [],
            "train": train,
            "data": config.data.model_copy(update=data),
            "objective": config.objective.model_copy(update=objective),
            "optimizer": config.optimizer.model_copy(update=optimizer),
            "schedule": section.schedule or config.schedule,
        }
    )


def plan_all_batches(config: Config, *, dp_world_size: int) -> list[BatchPlan]:
    """How every batch size of every phase is dealt over the ranks; UserError naming the first that cannot be."""
    plans = []
    for phase in phases_of(config):
        where = f"phases[{phase.number}]" if config.phases else "train"
        sizes = phase.batch_sizes
        named = [(f"{where}.batch_warmup[{i}]", rows) for i, (_, rows) in enumerate(sizes.warmup)]
        for name, rows in [*named, (where if config.phases else "", sizes.final)]:
            try:
                plan = plan_batches(
                    global_batch_size=rows,
                    micro_batch_size=phase.config.train.micro_batch_size,
                    dp_world_size=dp_world_size,
                    lanes=config.data.lanes,
                )
            except UserError as error:
                raise UserError(f"{name}: {error}" if name else str(error)) from None
            plans.append(plan)
    return plans


def most_micro_steps(config: Config, *, dp_world_size: int) -> BatchPlan:
    """The plan, of all batch sizes of the run, that accumulates gradients over most micro-batches."""
    return max(plan_all_batches(config, dp_world_size=dp_world_size), key=lambda plan: plan.grad_accum_steps)


def with_micro_batch_size(config: Config, rows: int) -> Config:
    """The recipe with micro-batches of so many rows in every phase."""
    train = config.train.model_copy(update={"micro_batch_size": rows})
    phases = [phase.model_copy(update={"micro_batch_size": rows}) for phase in config.phases]
    return config.model_copy(update={"train": train, "phases": phases})
