"""One global step on a DeepSpeed engine: data-parallel, at any ZeRO stage and precision."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainer.model.loss_term import LossTerm
from trainer.part_clock import BACKWARD, FORWARD, OPTIMIZER, PartClock
from trainer.step_engine import EngineSettings, EngineStep
from trainer.step_sums import StepBatch, StepSums


class DataParallelStep(EngineStep):
    """The whole encoder on every rank: the `Step` of layouts without pipeline stages."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, settings: EngineSettings) -> None:
        super().__init__(model, optimizer, settings=settings)
        # Imported here because it must come after the start-up, which tells it which accelerator there is.
        import deepspeed

        self._gradient_norm: Tensor | None = None
        # BF16_Optimizer prints its memory use while it is built.
        with contextlib.redirect_stdout(io.StringIO()):
            self._engine, *_ = deepspeed.initialize(
                model=model.to(self._device),
                optimizer=optimizer,
                config=dict(settings.plan.config),
                dist_init_required=False,
            )
        self._engine_is_made()

    def train_step(
        self,
        batches: Sequence[StepBatch],
        *,
        step: int,
        learning_rate: float,
        accept: Callable[[StepSums], bool] | None = None,
    ) -> StepSums:
        counts, factors = self._begin(batches, step=step, learning_rate=learning_rate)
        losses = torch.zeros_like(counts)
        for number, batch in enumerate(batches, start=1):
            # Counted here: the engine's own count goes wrong when the number of micro-batches changes on the way.
            self._engine.set_gradient_accumulation_boundary(number == len(batches))
            output = self._forward(batch)
            terms = torch.stack([output[term].loss for term in self._terms])
            self._engine.backward((terms * factors).sum(), scale_wrt_gas=False)
            losses += terms.detach()
            if not self._engine.is_gradient_accumulation_boundary():
                self._engine.step()
        sums = self._training_sums(losses, counts)
        if self._zero_stage == 0:
            # DeepSpeed keeps no norm at this stage; behind its step the gradients are gone.
            self._gradient_norm = _norm(self._engine.module)
        self._update(self._engine.step, accepted=accept is None or accept(sums))
        self._end(losses, step=step)
        return sums

    def eval_step(self, batch: StepBatch) -> StepSums:
        self._engine.eval()
        try:
            with torch.no_grad():
                output = self._forward(batch)
        finally:
            self._engine.train()
        return {term: LossTerm(*(value.double() for value in output[term])) for term in self._terms}

    def predict_step(self, batch: StepBatch) -> Any:
        """What the model's forward gives for one micro-batch with `predict=True`, without gradients or dropout."""
        self._engine.eval()
        try:
            with torch.no_grad():
                return self._forward(batch, predict=True)
        finally:
            self._engine.train()

    @contextlib.contextmanager
    def timed_parts(self, clock: PartClock) -> Iterator[None]:
        parts = {"forward": FORWARD, "backward": BACKWARD, "step": OPTIMIZER}
        for name, part in parts.items():
            setattr(self._engine, name, clock.timed(part, getattr(self._engine, name)))
        try:
            yield
        finally:
            for name in parts:
                delattr(self._engine, name)

    def _forward(self, batch: StepBatch, **options: bool) -> Any:
        inputs = {
            name: torch.from_numpy(array).to(self._device, non_blocking=True)
            for name, array in batch.model_inputs().items()
        }
        return self._engine(**inputs, **options)

    @property
    def gradient_norm(self) -> float:
        if self._zero_stage > 0:
            return super().gradient_norm
        return 0.0 if self._gradient_norm is None else float(self._gradient_norm)


def _norm(module: nn.Module) -> Tensor:
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)
