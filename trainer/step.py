"""One global step on a DeepSpeed engine: data-parallel, at any ZeRO stage and precision."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_pipeline.hashing import derive_key
from trainer.ds_config import DeepSpeedPlan
from trainer.ema import WeightAverage
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
from trainer.model.loss_term import MASKED_LANGUAGE_MODEL, LossTerm
from trainer.nonfinite import NonFiniteWatch
from trainer.optim import set_learning_rate, without_update
from trainer.runtime import Runtime
from trainer.step_sums import StepBatch, StepSums


class DataParallelStep:
    """The encoder in a DeepSpeed engine. Every method is collective: all ranks call it, in the same order."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        plan: DeepSpeedPlan,
        runtime: Runtime,
        seed: int,
        term_weights: Mapping[str, float] = MappingProxyType({MASKED_LANGUAGE_MODEL: 1.0}),
        ema_decay: float | None = None,
    ) -> None:
        # Imported here because it must come after the start-up, which tells it which accelerator there is.
        import deepspeed

        self._device = runtime.device
        self._dp_rank = runtime.topology.dp_rank
        self._dp_world_size = runtime.topology.dp_world_size
        self._zero_stage = plan.zero_stage
        self._seed = seed
        self._terms = tuple(term_weights)
        self._weights = torch.tensor([*term_weights.values()], dtype=torch.float64, device=self._device)
        self._shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        self._base_optimizer = optimizer
        self._gradient_norm: Tensor | None = None
        self._accepted = True
        self._watch = NonFiniteWatch(model, device=self._device)
        # BF16_Optimizer prints its memory use while it is built.
        with contextlib.redirect_stdout(io.StringIO()):
            self._engine, *_ = deepspeed.initialize(
                model=model.to(runtime.device), optimizer=optimizer, config=dict(plan.config), dist_init_required=False
            )
        self._average = WeightAverage(self._fragments(), decay=ema_decay) if ema_decay is not None else None

    def train_step(
        self,
        batches: Sequence[StepBatch],
        *,
        step: int,
        learning_rate: float,
        accept: Callable[[StepSums], bool] | None = None,
    ) -> StepSums:
        """Consume one global batch and update the weights once; returns this rank's sums without waiting for them.

        The gradient is that of the loss of `trainer.step_sums` over the whole global batch, however it is split:
        each micro-batch's summed losses are divided by the global counts of their terms, and multiplied by the
        number of ranks because the engine averages over them. `accept` sees the sums before the update and has all
        ranks leave it out by answering False.
        """
        counts = self._counts(batches)
        global_counts = counts.clone()
        dist.all_reduce(global_counts)
        scale = (self._dp_world_size * self._weights / global_counts.clamp(min=1.0)).float()
        # Dropout is a function of (seed, step, rank): nothing about random numbers needs to be saved.
        torch.manual_seed(derive_key("dropout", self._seed, step, self._dp_rank) >> 1)
        set_learning_rate(self._base_optimizer, learning_rate)
        losses = torch.zeros_like(counts)
        self._set_batch_sizes(batches)
        for number, batch in enumerate(batches, start=1):
            # Counted here: the engine's own count goes wrong when the number of micro-batches changes on the way.
            self._engine.set_gradient_accumulation_boundary(number == len(batches))
            output = self._forward(batch)
            terms = torch.stack([output[term].loss for term in self._terms])
            self._engine.backward((terms * scale).sum(), scale_wrt_gas=False)
            losses += terms.detach()
            if not self._engine.is_gradient_accumulation_boundary():
                self._engine.step()
        none_correct = torch.zeros((), dtype=torch.float64, device=self._device)
        sums = {term: LossTerm(losses[i], counts[i], none_correct) for i, term in enumerate(self._terms)}
        self._update(accepted=accept is None or accept(sums))
        self._watch.end_step(step + 1, losses=losses, applied=self.was_applied)
        return sums

    def _update(self, *, accepted: bool) -> None:
        if self._zero_stage == 0:
            # DeepSpeed keeps no norm at this stage; behind its step the gradients are gone.
            self._gradient_norm = _norm(self._engine.module)
        self._accepted = accepted
        with contextlib.nullcontext() if accepted else without_update(self._base_optimizer):
            self._engine.step()
        if self._average is not None and self.was_applied:
            self._average.update()

    def _set_batch_sizes(self, batches: Sequence[StepBatch]) -> None:
        """Tell the engine of this step's batch; phases and warm-up change it."""
        rows = len(next(iter(batches[0].model_inputs().values())))
        self._engine.set_train_micro_batch_size(rows)
        self._engine.set_train_batch_size(rows * len(batches) * self._dp_world_size)

    def _counts(self, batches: Sequence[StepBatch]) -> Tensor:
        of_batches = [batch.term_counts() for batch in batches]
        counts = [float(sum(of_batch[term] for of_batch in of_batches)) for term in self._terms]
        return torch.tensor(counts, dtype=torch.float64, device=self._device)

    def eval_step(self, batch: StepBatch) -> StepSums:
        """Sums over one micro-batch of this rank, without gradients or dropout."""
        self._engine.eval()
        try:
            with torch.no_grad():
                output = self._forward(batch)
        finally:
            self._engine.train()
        return {term: LossTerm(*(value.double() for value in output[term])) for term in self._terms}

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Compute with the weights' moving average where one is kept, with the weights themselves again afterwards."""
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

    def _forward(self, batch: StepBatch) -> dict[str, LossTerm]:
        inputs = {
            name: torch.from_numpy(array).to(self._device, non_blocking=True)
            for name, array in batch.model_inputs().items()
        }
        output: dict[str, LossTerm] = self._engine(**inputs)
        return output

    @property
    def was_applied(self) -> bool:
        """Whether the last step changed the weights; one that was not accepted, or overflows in fp16, does not."""
        return self._accepted and bool(self._engine.was_step_applied())

    @property
    def gradient_norm(self) -> float:
        """L2 norm of the last step's gradient before clipping. Waits for the device."""
        norm = self._gradient_norm if self._zero_stage == 0 else self._engine.get_global_grad_norm()
        return 0.0 if norm is None else float(norm)

    @property
    def loss_scale(self) -> float:
        """The factor that fp16 losses are multiplied by; 1 in other precisions."""
        scaler = self._loss_scaler()
        return float(scaler.cur_scale) if scaler is not None else 1.0

    def _loss_scaler(self) -> Any:
        return getattr(self._engine.optimizer, "loss_scaler", None) if self._engine.fp16_enabled() else None

    def _fragments(self) -> list[Fragment]:
        return local_fragments(
            self._engine.module, self._engine.optimizer, zero_stage=self._zero_stage, dp_rank=self._dp_rank
        )

    def locate_non_finite(self) -> str | None:
        """Where a NaN or an infinity was first seen: step, rank and place; None where it was in no step."""
        return self._watch.locate()

    def state(self, *, weights_only: bool = False) -> EngineState:
        """This rank's part of the state, copied to host memory; together the ranks hold every element once."""
        fragments = self._fragments()
        scalars = optimizer_scalars(fragments, self._base_optimizer)
        if self._zero_stage == 0:
            fragments = fragments[self._dp_rank :: self._dp_world_size]
        tensors: dict[str, Tensor] = {}
        for fragment in fragments:
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
        """Take over master weights, their average, optimiser and loss scaler from a checkpoint saved in any layout.

        A moving average that the checkpoint does not hold begins at its weights.
        """
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
        """Release the engine's hooks and buffers, so that another engine may be made in this process."""
        self._engine.destroy()


def _norm(module: nn.Module) -> Tensor:
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


def _is_number(value: object) -> bool:
    return isinstance(value, (bool, int, float))
