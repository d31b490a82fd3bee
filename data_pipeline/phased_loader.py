"""The loader of a whole run: its phases' loaders one after the other, each with rows of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from data_pipeline.batch import Batch
from data_pipeline.loader import TrainLoader
from trainer.phases import Phase, phase_at


class PhasedLoader:
    """Iterates over a run's global steps; each item is this rank's micro-batches of one step.

    `stops` ends the run (`num_steps`) before any source begins again. Iteration itself never ends.
    """

    def __init__(self, phases: Sequence[Phase], loaders: Sequence[TrainLoader], *, stops: bool = False) -> None:
        self._phases = phases
        self._loaders = loaders
        self._stops = stops
        self._step = 0

    @property
    def num_steps(self) -> int:
        """Steps that the run has: the recipe's, or as many as there is data for."""
        last = self._phases[-1]
        planned = last.first_step + last.config.train.steps
        return min(planned, self._loaders[-1].steps_before_repeat) if self._stops else planned

    def __iter__(self) -> Iterator[list[Batch]]:
        return self

    def __next__(self) -> list[Batch]:
        number = phase_at(self._phases, self._step).number
        if number > 0 and self._step == self._phases[number].first_step:
            self._loaders[number - 1].close()
        batches = next(self._loaders[number])
        self._step += 1
        return batches

    def seek(self, step: int) -> None:
        """Go on from the batch after `step` steps, at the same cost for every step. Call before iterating."""
        phase = phase_at(self._phases, step)
        self._loaders[phase.number].seek(step - phase.first_step)
        self._step = step

    def state_dict(self) -> dict[str, Any]:
        """The cursor behind the last step handed out; at a border it is the next phase's first row."""
        return self._loaders[phase_at(self._phases, self._step).number].state_dict()

    def load_state_dict(self, state: dict[str, Any], *, step: int) -> None:
        """Go on from a cursor saved after `step` steps; UserError when it is of other rows. Call before iterating."""
        phase = phase_at(self._phases, step)
        if step == phase.first_step and state["phase"] == phase.number - 1:
            # A run that had ended here, to whose recipe this phase was added.
            ended = self._phases[phase.number - 1]
            self._loaders[ended.number].load_state_dict(state, step=step - ended.first_step)
        else:
            self._loaders[phase.number].load_state_dict(state, step=step - phase.first_step)
        self._step = step

    def close(self) -> None:
        """End the background threads."""
        for loader in self._loaders:
            loader.close()
