"""One global step on DeepSpeed's pipeline engine: stages pass micro-batches on, one forward, one backward."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.pipe.engine import TRAIN_BATCH_TIMER, PipelineEngine
from deepspeed.runtime.pipe.schedule import BackwardPass, ForwardPass, OptimizerStep, ReduceTiedGrads
from deepspeed.utils import groups
from torch import Tensor, nn

from trainer.model.bert import BertForMaskedLanguageModel
from trainer.model.loss_term import LossTerm
from trainer.model.pipeline import EncoderPipeline, is_copy
from trainer.model.pipeline_stage import STAGE_INPUTS
from trainer.part_clock import BACKWARD, FORWARD, OPTIMIZER, PartClock
from trainer.step_engine import EngineSettings, EngineStep
from trainer.step_sums import StepBatch, StepSums


class PipelineStep(EngineStep):
    """A stage of the encoder on each rank: the `Step` of layouts with several (Narayanan et al. 2021, 1F1B)."""

    def __init__(
        self,
        model: BertForMaskedLanguageModel,
        optimizer: torch.optim.Optimizer,
        *,
        bounds: Sequence[int],
        settings: EngineSettings,
    ) -> None:
        super().__init__(model, optimizer, settings=settings)
        ds_config = dict(settings.plan.config)
        self._is_last = self._topology.stage_id == self._topology.num_stages - 1
        self._factors = torch.zeros_like(self._weights)
        self._outputs: list[dict[str, LossTerm]] = []
        self._input_names = (*STAGE_INPUTS, *model.label_inputs)
        self._travelling: list[tuple[str, tuple[int, ...]]] = []
        # Both constructors print what they were given.
        with contextlib.redirect_stdout(io.StringIO()):
            module = EncoderPipeline(model, bounds=bounds, loss=self._loss)
            _keep_own(optimizer, module)
            self._engine = _Engine(
                args=None,
                model=module,
                optimizer=optimizer,
                mpu=module.mpu(),
                dist_init_required=False,
                config=ds_config,
                config_class=DeepSpeedConfig(ds_config, module.mpu()),
            )
        own = {id(parameter) for parameter in module.parameters()}
        self._parameters = {name: value for name, value in self._parameters.items() if id(value) in own}
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
        self._factors = factors * len(batches)  # by which the engine divides
        self._outputs.clear()
        self._expect_shape(batches[0])
        sums = self._training_sums(torch.zeros_like(counts), counts if self._is_last else torch.zeros_like(counts))

        def update(step_of_engine: Callable[[], None]) -> None:
            for term, (losses, _, _) in sums.items():
                for output in self._outputs:
                    losses += output[term].loss.detach()
            self._update(step_of_engine, accepted=accept is None or accept(sums))

        self._engine.on_update = update
        self._engine.train_batch(iter([self._inputs(batch) for batch in batches]))
        # Only DeepSpeed's own printing, which is off, would empty it: it would grow with every step.
        self._engine.timers(TRAIN_BATCH_TIMER).reset()
        self._end(torch.stack([term.loss for term in sums.values()]), step=step)
        return sums

    def eval_step(self, batch: StepBatch) -> StepSums:
        self._outputs.clear()
        self._expect_shape(batch)
        self._engine.eval_batch(iter([self._inputs(batch)]), reduce_output=None, bcast_loss=False, num_micro_batches=1)
        zero = torch.zeros((), dtype=torch.float64, device=self._device)
        if not self._is_last:
            return {term: LossTerm(zero, zero, zero) for term in self._terms}
        return {term: LossTerm(*(value.double() for value in self._outputs[0][term])) for term in self._terms}

    @contextlib.contextmanager
    def timed_parts(self, clock: PartClock) -> Iterator[None]:
        parts = {ForwardPass: FORWARD, BackwardPass: BACKWARD, OptimizerStep: OPTIMIZER}
        table = self._engine._INSTRUCTION_MAP
        timed = {instruction: clock.timed(part, table[instruction]) for instruction, part in parts.items()}
        self._engine._INSTRUCTION_MAP = {**table, **timed}
        try:
            yield
        finally:
            del self._engine._INSTRUCTION_MAP

    def _loss(self, output: dict[str, LossTerm], _: object) -> Tensor:
        """The scalar that the last stage starts its backward pass from."""
        self._outputs.append(output)
        return (torch.stack([output[term].loss for term in self._terms]) * self._factors).sum()

    def _inputs(self, batch: StepBatch) -> tuple[tuple[Tensor, ...], tuple[()]]:
        """What the engine loads: the first stage takes the inputs; labels travel with them, so the last loads none."""
        arrays = batch.model_inputs()
        if not {*self._input_names} - {"token_type_ids"} <= {*arrays} <= {*self._input_names}:
            raise ValueError(f"the stages take {sorted(self._input_names)}, the batch has {sorted(arrays)}")
        return tuple(torch.from_numpy(arrays[name]) for name in self._input_names if name in arrays), ()

    def _expect_shape(self, batch: StepBatch) -> None:
        """Stages tell each other the shape of what travels once; a batch of another shape makes them do so again."""
        shapes = [(name, array.shape) for name, array in batch.model_inputs().items()]
        if shapes != self._travelling:
            self._engine.reset_activation_shape()
            self._travelling = shapes

    def _is_copy(self, name: str) -> bool:
        return is_copy(self._parameters[name])

    def close(self) -> None:
        super().close()
        # DeepSpeed would take the grid of stages for that of every later engine of this process.
        groups.mpu = None


def _keep_own(optimizer: torch.optim.Optimizer, module: nn.Module) -> None:
    """Let go of the parameters that other stages update."""
    own = {id(parameter) for parameter in module.parameters()}
    for group in optimizer.param_groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) in own]


class _Engine(PipelineEngine):  # type: ignore[misc]
    """DeepSpeed's engine, but for what it gets wrong where a matrix is tied or ZeRO is off."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        # Given the engine's own step, decides about it and calls it; behind the last backward pass of each batch.
        self.on_update: Callable[[Callable[[], None]], None] = lambda step_of_engine: step_of_engine()
        ends = {rank for pipe in self.grid.pipe_groups for rank in (pipe[0], pipe[-1])}
        self._tied_group = dist.new_group(sorted(ends))

    def _exec_reduce_tied_grads(self) -> None:
        """Sum the tied matrix's gradient over both its holders in all replicas at once.

        DeepSpeed sums within a replica, and passes by the fp32 sums of ZeRO's half precisions. What follows, the
        mean over replicas, could then round differently in the two stages, and the copies drift apart; the mean of
        equal numbers cannot.
        """
        for weight, _ in self.module.get_tied_weights_and_groups():
            gradient = self._gradient(weight)
            dist.all_reduce(gradient, group=self._tied_group)
            gradient /= self.dp_world_size

    def _gradient(self, weight: Any) -> Tensor:
        if self.using_bf16_optimizer:
            gradient: Tensor = weight._hp_grad
        elif self.zero_optimization():
            gradient = self.optimizer.get_param_gradient_attribute(weight)
        else:
            gradient = weight.grad
        return gradient

    def _take_model_step(self, lr_kwargs: Any) -> None:
        """Without ZeRO, DeepSpeed keeps no norm and clips each stage by a norm that leaves the others out."""
        if not self.zero_optimization():
            counted = [
                parameter.grad
                for parameter in self.module.parameters()
                if parameter.grad is not None and not is_copy(parameter)
            ]
            squared = torch.nn.utils.get_total_norm(counted).square()
            dist.all_reduce(squared, group=self.grid.get_pipe_parallel_group())
            self._global_grad_norm = squared.sqrt()
        self.on_update(partial(super()._take_model_step, lr_kwargs))

    def clip_fp32_gradients(self) -> None:
        """Clip by the norm over all stages."""
        torch.nn.utils.clip_grads_with_norm_(self.module.parameters(), self.gradient_clipping(), self._global_grad_norm)

    # DeepSpeed runs instructions by this table, not by name.
    _INSTRUCTION_MAP: ClassVar[dict[type, Any]] = {
        **PipelineEngine._INSTRUCTION_MAP,
        ReduceTiedGrads: _exec_reduce_tied_grads,
    }
