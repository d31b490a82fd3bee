"""The training loop: consume a global batch, update, now and then measure, evaluate and save."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from trainer.checkpoint_files import CheckpointReader
from trainer.checkpoint_writer import CheckpointWriter
from trainer.device_peak import device_peak_flops, measure_matmul_peak
from trainer.errors import UserError
from trainer.memory import peak_memory_gib
from trainer.metrics import MetricsWriter
from trainer.preemption import StoppedEarly
from trainer.progress import ProgressReporter
from trainer.rank_health import by_rank, placed, restarts
from trainer.runtime import Runtime, on_main
from trainer.skip_report import SkipReport
from trainer.step_sums import StepSums, stacked, weighted_mean
from trainer.throughput import ThroughputMeter
from trainer.topology import Topology
from trainer.training_run import TrainingRun

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_PEAK_MEASUREMENT_S = 0.3


class Trainer:
    """Runs a set-up run to its last step; every method is collective."""

    def __init__(
        self,
        run: TrainingRun,
        *,
        metrics: MetricsWriter,
        progress: ProgressReporter,
        poll: Callable[[], None] | None = None,
    ) -> None:
        self.run = run
        self._poll = poll
        self._metrics = metrics
        self._progress = progress
        self._meter = ThroughputMeter()
        self._peak_flops = total_peak_flops(run.runtime, run.ds_plan.precision)
        self._writer = CheckpointWriter(run.checkpoints, runtime=run.runtime)
        self._saved_at_s = time.monotonic()
        self._saved_step = run.state.step
        self._sources = run.source_names
        self._uncollected_tokens = np.zeros(len(self._sources), dtype=np.int64)
        self._skips = SkipReport(run.skipped, report=progress.message) if run.skipped is not None else None
        self._shown_step = run.state.step
        self._scores: dict[str, float] = {}
        self._restarts = restarts(run.config.run_dir) if run.runtime.is_main else 0
        self._guard = run.spikes
        self._accept = run.spikes.accept if run.spikes is not None and run.spikes.on_spike == "skip" else None

    def train(self) -> None:
        """Train to the recipe's last step, or until evaluations stop getting better, and save what is reached.

        `poll` is called before each step and after each batch of an evaluation; what it raises on all ranks,
        StoppedEarly, goes on to the caller once the run is saved.
        """
        try:
            with self._meter.paused():
                if self.run.state.evaluation_pending and self._evaluate():
                    self.save()
            self._train()
        except StoppedEarly:
            if self.run.state.step > self._saved_step:
                if (spike := self._find_spike()) is not None:
                    self._answer_spike(spike)  # losses not yet looked at are in no checkpoint
                self.save()
            self._writer.wait()
            raise

    def _train(self) -> None:
        config, state, total = self.run.config, self.run.state, self.run.total_steps
        while state.step < total and not self._patience_is_over():
            if self._poll is not None:
                self._poll()
            with self._meter.waiting_for_data():
                batches = next(self.run.loader)
            rate = self.run.learning_rate()
            sums = self.run.engine.train_step(batches, step=state.step, learning_rate=rate, accept=self._accept)
            state.step += 1
            state.applied_steps += self.run.engine.was_applied
            state.phase_applied_steps += self.run.engine.was_applied
            self._count(batches)
            if self._guard is not None and self._accept is None:
                self._guard.note(sums, step=state.step)
            time_to_save = state.step % config.checkpoint.every_steps == 0 or state.step == total
            # Logged before it is saved: a diverged run must not replace the last good checkpoint.
            if time_to_save or state.step % self.run.log_every_steps == 0:
                time_to_save |= self._log(sums, learning_rate=rate)
            else:
                self._progress.advance(state.step)
            with self._meter.paused():
                if self._evaluate_when_due() or time_to_save or self._patience_is_over():
                    self.save()
                self._writer.poll()
        self._wait_for_checkpoint()
        if self._scores:  # there are none where the run was at its end already
            self._metrics.write_hyperparameters(config.model_dump(), scores=self._scores)

    def _patience_is_over(self) -> bool:
        """Whether the last evaluations, as many as the run's patience, were all worse than the best one."""
        every, patience, state = self.run.evaluate_every_steps, self.run.patience, self.run.state
        if every is None or patience is None or state.best_step is None:
            return False
        return state.step // every - state.best_step // every >= patience

    def _count(self, batches: Sequence[Any]) -> None:
        tokens, positions = sum(batch.tokens for batch in batches), sum(batch.input_ids.size for batch in batches)
        self._meter.add_step(tokens=tokens, positions=positions, flops=self.run.flops(batches))
        self._uncollected_tokens += self.run.tokens_by_source(batches)
        if self._skips is not None:
            self._skips.count(batches)

    def _log(self, sums: StepSums, *, learning_rate: float) -> bool:
        """Write this step's figures; True when rank 0's clock says that it is time to save."""
        state, runtime = self.run.state, self.run.runtime
        minutes = (time.monotonic() - self._saved_at_s) / 60
        late = runtime.is_main and minutes >= self.run.config.checkpoint.every_minutes
        own = self._meter.read(peak_flops=self._peak_flops)
        health = [own["time/step_s"], self.run.engine.read_forward_s(), own["time/data_wait_s"]]
        sent = [*own.values(), float(late), *placed(health, topology=runtime.topology)]
        figures = torch.tensor(sent, dtype=torch.float64, device=runtime.device)
        totals = torch.cat([stacked(sums).flatten(), figures])
        dist.all_reduce(totals)
        term_totals, received = totals[: -len(figures)], totals[-len(figures) :].tolist()
        speed, time_to_save, of_ranks = received[: len(own)], received[len(own)], received[len(own) + 1 :]
        losses = self._losses(tuple(sums), term_totals)
        loss = losses["train/loss"]
        self._collect_tokens()
        spike = self._find_spike()
        values = {
            **losses,
            "train/learning_rate": learning_rate,
            "train/grad_norm": self.run.engine.gradient_norm,
            "train/loss_scale": self.run.engine.loss_scale,
            "train/tokens": float(state.tokens),
            **{f"data/tokens/{name}": float(tokens) for name, tokens in state.source_tokens.items()},
            **over_ranks(dict(zip(own, speed, strict=True)), topology=runtime.topology),
            "memory/peak_gib": peak_memory_gib(runtime.device),
            "ranks/restarts": float(self._restarts),
            **(self._skips.collect() if self._skips is not None else {}),
            **({"stability/spikes": float(self._guard.spikes)} if self._guard is not None else {}),
            **(self.run.engine.layer_norms() if self.run.log_layer_norms else {}),
        }
        ranks = by_rank(of_ranks, topology=runtime.topology)
        self._metrics.write({**values, **ranks}, step=state.step, applied_steps=state.applied_steps)
        self._scores["train/loss"] = loss
        self._progress.report(state.step, metrics=values)
        if not math.isfinite(loss):
            self._writer.wait()
            place = self.run.engine.locate_non_finite()
            raise UserError(
                f"the loss of step {state.step} is {loss}{f', {place}' if place else ''}: training diverged; "
                "nothing was saved since step "
                f"{self._saved_step}. Lower optimizer.learning_rate or lengthen schedule.warmup_steps, and start "
                f"again; if it then fails at once, remove {self.run.checkpoints.path(self._saved_step)}"
            )
        if spike is not None:
            self._answer_spike(spike)
        return bool(time_to_save)

    def _find_spike(self) -> int | None:
        return self._guard.find() if self._guard is not None and self._accept is None else None

    def _answer_spike(self, step: int) -> None:
        """Return to the last checkpoint's weights and optimiser, at the present row; or end the run."""
        run = self.run
        self._writer.wait()
        stop = run.spikes is None or run.spikes.on_spike == "stop"
        saved = (
            None if stop else on_main(run.runtime, lambda: run.checkpoints.newest_whole(report=self._progress.message))
        )
        if run.spikes is None or saved is None:
            why = "stability.on_spike=stop" if stop else "there is no checkpoint to go back to"
            raise UserError(
                f"the loss spiked at step {step} and {why}; nothing was saved since step {self._saved_step}. Lower "
                "optimizer.learning_rate, or choose stability.on_spike=skip, and start again"
            )
        source = CheckpointReader(saved)
        run.engine.load_state(source)
        run.state.applied_steps = source.state["applied_steps"]
        # Of a phase that began behind the checkpoint, every update is gone.
        same_phase = source.state["step"] >= run.phase_first_step
        run.state.phase_applied_steps = source.state["phase_applied_steps"] if same_phase else 0
        run.spikes.roll_back(source.state.get("spikes") or {"losses": []})
        self._progress.message(
            f"the loss spiked at step {step}: went back to the weights of {saved.name}; the rows up to step "
            f"{run.state.step} stay consumed"
        )

    def _losses(self, terms: Sequence[str], totals: Tensor) -> dict[str, float]:
        """The trained loss by metric key, and each term's own with its count where there are several."""
        sums, counts, _ = totals.view(len(terms), 3).T.tolist()
        weights = [self.run.term_weights[term] for term in terms]
        values = {"train/loss": weighted_mean(sums, counts, weights)}
        if len(terms) > 1:
            for term, loss, count in zip(terms, sums, counts, strict=True):
                values |= {f"train/loss_{term}": loss / max(count, 1.0), f"train/predictions_{term}": count}
        return values

    def _collect_tokens(self) -> None:
        """Add what all ranks consumed since the last time to the run's counts."""
        state = self.run.state
        tokens = torch.from_numpy(self._uncollected_tokens.copy()).to(self.run.runtime.device)
        dist.all_reduce(tokens)
        tokens //= self.run.runtime.topology.num_stages  # each stage of a replica has counted the same
        state.tokens += int(tokens.sum())
        if len(self._sources) > 1:
            for name, of_source in zip(self._sources, tokens.tolist(), strict=True):
                state.source_tokens[name] = state.source_tokens.get(name, 0) + of_source
        self._uncollected_tokens[:] = 0

    def _evaluate_when_due(self) -> bool:
        """Evaluate at the recipe's steps and at the last one; True when the loss is the least so far."""
        run, state = self.run, self.run.state
        if run.evaluate_every_steps is None:
            return False
        if state.step % run.evaluate_every_steps and state.step != run.total_steps:
            return False
        return self._evaluate()

    def _evaluate(self) -> bool:
        run, state = self.run, self.run.state
        if run.evaluate_every_steps is None:
            return False
        if (spike := self._find_spike()) is not None:
            self._answer_spike(spike)  # first, because the best checkpoint is saved behind an evaluation
        state.evaluation_pending = True
        with run.engine.averaged_weights():
            result = run.evaluate(poll=self._poll)
        state.evaluation_pending = False
        self._metrics.write(result.metrics(), step=state.step, applied_steps=state.applied_steps)
        self._scores |= result.metrics()
        self._progress.message(f"step {state.step}: {result.summary()}")
        return state.offer_best(result.score)

    def save(self) -> None:
        """Begin to write a checkpoint of the present step: copied to host memory now, written beside the training."""
        run = self.run
        self._collect_tokens()
        began_s = time.monotonic()
        # First, so that host memory holds one copy of the state at a time.
        self._wait_for_checkpoint()
        self._writer.start(
            run.state.step,
            run.engine.state(weights_only=run.config.checkpoint.weights_only),
            state={
                **run.state.state_dict(),
                "spikes": run.spikes.state_dict() if run.spikes is not None else None,
                "cursor": run.loader.state_dict(),
                "config": run.config.model_dump(),
                "precision": run.ds_plan.precision,
                "zero_stage": run.ds_plan.zero_stage,
                "world_size": run.runtime.topology.world_size,
                "num_stages": run.runtime.topology.num_stages,
                **run.origin(),
            },
            keep_last=run.config.checkpoint.keep_last,
            best_step=run.state.best_step,
        )
        self._saved_at_s = time.monotonic()
        stall = {"time/checkpoint_stall_s": self._saved_at_s - began_s}
        self._metrics.write(stall, step=run.state.step, applied_steps=run.state.applied_steps)
        self._saved_step = run.state.step

    def _wait_for_checkpoint(self) -> None:
        """Let the checkpoint being written be published, and show what its model does if it is the best."""
        self._writer.wait()
        step, checkpoints = self._saved_step, self.run.checkpoints
        if self.run.runtime.is_main and step > self._shown_step and step == checkpoints.best_step():
            self._shown_step = step
            if (markdown := self.run.examples(CheckpointReader(checkpoints.path(step)))) is not None:
                self._metrics.write_text("examples", markdown, step=step)


def over_ranks(sums: dict[str, float], *, topology: Topology) -> dict[str, float]:
    """Figures summed over ranks as figures of the job: rates of replicas add up, times and shares are means."""
    return {
        key: value / (topology.num_stages if key.startswith("throughput/") else topology.world_size)
        for key, value in sums.items()
    }


def total_peak_flops(runtime: Runtime, precision: str) -> float:
    """Matmul peak of all ranks' devices together, FLOP/s: from the makers' figures, else measured; collective."""
    peak = device_peak_flops(runtime.device_name, precision) if runtime.device.type == "cuda" else None
    if peak is None:
        dist.barrier()
        peak = measure_matmul_peak(runtime.device, _DTYPES[precision], seconds=_PEAK_MEASUREMENT_S)
    total = torch.tensor(peak, dtype=torch.float64, device=runtime.device)
    dist.all_reduce(total)
    return float(total)
