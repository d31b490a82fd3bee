"""What both forms of the step share: a DeepSpeed engine, its counts, its state by parameter name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_pipeline.hashing import derive_key
from trainer.ds_config import DeepSpeedPlan
from trainer.ema import WeightAverage
from trainer.forward_timer import ForwardTimer
from trainer.fragments import (
    AVERAGE,
    WEIGHT,
    EngineState,
    Fragment,
    StateSource,
    create_optimizer_state,
    fragment_key,
    local_fragments,
    optimizer_scalars,
    optimizer_tensors,
    refresh_working_copies,
)
from trainer.layer_norms import layer_norms
from trainer.model.loss_term import LossTerm
from trainer.nonfinite import NonFiniteWatch
from trainer.optim import set_learning_rate, without_update
from trainer.runtime import Runtime
from trainer.step_sums import StepBatch, StepSums


@dataclass(frozen=True)
class EngineSettings:
    """What an engine is made of beside model and optimiser; `term_weights` names the loss terms that are trained."""

    plan: DeepSpeedPlan
    runtime: Runtime
    seed: int
    term_weights: Mapping[str, float]
    ema_decay: float | None = None


class EngineStep:
    """The part of `Step` that does not depend on how an engine runs a batch.

    A subclass makes `_engine`, and then calls `_engine_is_made`.
    """

    _engine: Any

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, settings: EngineSettings) -> None:
        self._settings = settings
        self._device = settings.runtime.device
        self._topology = settings.runtime.topology
        self._zero_stage = settings.plan.zero_stage
        self._terms = tuple(settings.term_weights)
        self._weights = torch.tensor([*settings.term_weights.values()], dtype=torch.float64, device=self._device)
        # DeepSpeed changes parameters in place, so these stay what they are called in the plain model.
        self._parameters = dict(model.named_parameters())
        self._shapes = {name: tuple(parameter.shape) for name, parameter in self._parameters.items()}
        self._base_optimizer = optimizer
        self._accepted = True
        self._watch = NonFiniteWatch(model, device=self._device)
        self._average: WeightAverage | None = None

    def _engine_is_made(self) -> None:
        decay = self._settings.ema_decay
        self._average = WeightAverage(self._fragments(), decay=decay) if decay is not None else None
        self._timer = ForwardTimer(self._engine.module, device=self._device)

    def _begin(self, batches: Sequence[StepBatch], *, step: int, learning_rate: float) -> tuple[Tensor, Tensor]:
        """Make ready for a step: this replica's predictions by term, and the factor that each term's loss gets.

        The factors turn the engine's mean over replicas of summed losses into the trained loss: every term's weight
        over its count in the whole global batch, times the number of replicas.
        """
        counts = self._counts(batches)
        global_counts = counts.clone()
        dist.all_reduce(global_counts)
        global_counts /= self._topology.num_stages  # each stage of a replica has counted the same batches
        torch.manual_seed(derive_key("dropout", self._settings.seed, step, self._topology.rank) >> 1)
        set_learning_rate(self._base_optimizer, learning_rate)
        self._set_batch_sizes(batches)
        return counts, (self._topology.dp_world_size * self._weights / global_counts.clamp(min=1.0)).float()

    def _counts(self, batches: Sequence[StepBatch]) -> Tensor:
        of_batches = [batch.term_counts() for batch in batches]
        counts = [float(sum(of_batch[term] for of_batch in of_batches)) for term in self._terms]
        return torch.tensor(counts, dtype=torch.float64, device=self._device)

    def _set_batch_sizes(self, batches: Sequence[StepBatch]) -> None:
        """Tell the engine of this step's batch; phases and warm-up change it."""
        rows = len(next(iter(batches[0].model_inputs().values())))
        self._engine.set_train_micro_batch_size(rows)
        self._engine.set_train_batch_size(rows * len(batches) * self._topology.dp_world_size)

    def _update(self, update: Callable[[], None], *, accepted: bool) -> None:
        """Let the engine update the weights, or only let go of its gradients where that was not `accepted`."""
        self._accepted = accepted
        with contextlib.nullcontext() if accepted else without_update(self._base_optimizer):
            update()

    def _end(self, losses: Tensor, *, step: int) -> None:
        if self._average is not None and self.was_applied:
            self._average.update()
        self._watch.end_step(step + 1, losses=losses, applied=self.was_applied)

    def _training_sums(self, losses: Tensor, counts: Tensor) -> StepSums:
        none_correct = torch.zeros((), dtype=torch.float64, device=self._device)
        return {term: LossTerm(losses[i], counts[i], none_correct) for i, term in enumerate(self._terms)}

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        if self._average is None:
            yield
            return
        self._average.swap()
        self._refresh()
        try:
            yield
        finally:
            self._average.swap()
            self._refresh()

    def _refresh(self) -> None:
        refresh_working_copies(self._engine.optimizer, zero_stage=self._zero_stage)

    @property
    def was_applied(self) -> bool:
        return self._accepted and bool(self._engine.was_step_applied())

    @property
    def gradient_norm(self) -> float:
        norm = self._engine.get_global_grad_norm()
        return 0.0 if norm is None else float(norm)

    @property
    def loss_scale(self) -> float:
        scaler = self._loss_scaler()
        return float(scaler.cur_scale) if scaler is not None else 1.0

    def _loss_scaler(self) -> Any:
        return getattr(self._engine.optimizer, "loss_scaler", None) if self._engine.fp16_enabled() else None

    def read_forward_s(self) -> float:
        return self._timer.read()

    def locate_non_finite(self) -> str | None:
        return self._watch.locate()

    def _fragments(self) -> list[Fragment]:
        return local_fragments(
            self._parameters, self._engine.optimizer, zero_stage=self._zero_stage, dp_rank=self._topology.dp_rank
        )

    def _is_copy(self, name: str) -> bool:
        """Whether another stage holds the parameter too and saves it."""
        return False

    def _own_fragments(self) -> list[Fragment]:
        """This rank's part of what all ranks hold together, every element once."""
        fragments = [fragment for fragment in self._fragments() if not self._is_copy(fragment.name)]
        everywhere = [fragment for fragment in fragments if fragment.is_everywhere]
        dealt = everywhere[self._topology.dp_rank :: self._topology.dp_world_size]
        return [fragment for fragment in fragments if not fragment.is_everywhere] + dealt

    def layer_norms(self) -> dict[str, float]:
        return layer_norms((fragment.name, self._parts(fragment)) for fragment in self._own_fragments())

    def state(self, *, weights_only: bool = False) -> EngineState:
        scalars = optimizer_scalars(self._fragments(), self._base_optimizer)
        tensors: dict[str, Tensor] = {}
        for fragment in self._own_fragments():
            for kind, part in self._parts(fragment).items():
                if weights_only and kind not in (WEIGHT, AVERAGE):
                    continue
                key = fragment_key(kind, fragment.name, fragment.start)
                tensors[key] = part.to("cpu", torch.float32, copy=True)
        scaler = self._loss_scaler()
        numbers = {key: value for key, value in vars(scaler).items() if _is_number(value)} if scaler else {}
        shared = {"parameter_shapes": self._shapes, "optimizer_scalars": scalars, "loss_scaler": numbers}
        return EngineState(tensors=tensors, shared=shared)

    def load_state(self, source: StateSource) -> None:
        fragments = self._fragments()
        create_optimizer_state(fragments, self._base_optimizer, source=source)
        with torch.no_grad():
            for fragment in fragments:
                for kind, target in self._parts(fragment).items():
                    saved = kind if kind != AVERAGE or source.has_average else WEIGHT
                    target.copy_(source.read(saved, fragment.name, start=fragment.start, numel=fragment.numel))
        self._refresh()
        scaler = self._loss_scaler()
        if scaler is not None:
            vars(scaler).update(source.shared["loss_scaler"])

    def _parts(self, fragment: Fragment) -> dict[str, Tensor]:
        """Views of everything that is kept of a fragment's elements, by kind."""
        average = {} if self._average is None else {AVERAGE: self._average.view(fragment)}
        state = optimizer_tensors(fragment, self._base_optimizer)
        return {WEIGHT: fragment.view(fragment.flat), **average, **state}

    def close(self) -> None:
        self._engine.destroy()


def _is_number(value: object) -> bool:
    return isinstance(value, (bool, int, float))
