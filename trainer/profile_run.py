"""`trainer profile`: where the time of a step goes, what it sends, and a trace of each rank."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity

from data_pipeline.batch import Batch
from trainer.collectives import KINDS, counted_collectives
from trainer.communication_volume import StepBytes, step_bytes
from trainer.config import Config
from trainer.errors import UserError
from trainer.loop import over_ranks, total_peak_flops
from trainer.memory_plan import plan_stages
from trainer.part_clock import BACKWARD, CHECKPOINT, DATA_WAIT, FORWARD, OTHER, STAGE_WAIT, STEP_PARTS, PartClock
from trainer.pretrain import ready_shards
from trainer.pretraining_run import PretrainingRun
from trainer.progress import ProgressReporter
from trainer.runtime import Runtime, started
from trainer.setup import set_up, stage_bounds
from trainer.topology import topology_from_env

_WARM_UP_STEPS = 2
_TRACED_STEPS = 2


@dataclass(frozen=True)
class Profile:
    """What was found, equal on all ranks.

    speed: figures of steps without clocks, named as in metrics.jsonl; `throughput/hfu` also counts the FLOPs of
    layers computed again. parts: seconds of a step with clocks by part, a number for each rank. checkpoint_s: what
    copying the state for a checkpoint took, due once in `checkpoint_every` steps. sent, expected: bytes of a step
    and an average rank. compute_efficiency: hardware FLOPs over what the matmul peak makes of them in the time of
    forward and backward passes.
    """

    world_size: int
    num_stages: int
    zero_stage: int
    precision: str
    micro_batches: int
    steps: int
    peak_flops: float
    speed: Mapping[str, float]
    parts: Mapping[str, list[float]]
    checkpoint_s: float
    checkpoint_every: int
    sent: Mapping[str, float]
    expected: StepBytes
    compute_efficiency: float

    @property
    def bubble(self) -> float:
        """How much of forward, backward and waiting for other stages is waiting."""
        waiting = sum(self.parts[STAGE_WAIT])
        return waiting / (waiting + sum(self.parts[FORWARD]) + sum(self.parts[BACKWARD]))

    @property
    def expected_bubble(self) -> float:
        """(p - 1) / (m + p - 1) for p equal stages and m micro-batches (Narayanan et al. 2021, section 2.2)."""
        return (self.num_stages - 1) / (self.micro_batches + self.num_stages - 1)


def profile(config: Config, *, steps: int, out: Path) -> Profile | None:
    """Measure the recipe's first steps; every process that a launcher started calls it with the same arguments.

    Gives the main rank what was found, the others None. Each rank writes its trace into `out`. Nothing else is saved,
    and checkpoints of the run are left alone. UserError where the recipe has too few steps.
    """
    taken = _WARM_UP_STEPS + 2 * steps + _TRACED_STEPS
    if steps < 1 or taken > config.train.steps:
        raise UserError(
            f"--steps {steps} takes {taken} steps: {_WARM_UP_STEPS} to warm up, {steps} without clocks, {steps} with, "
            f"{_TRACED_STEPS} traced; it must be 1 or more, and train.steps={config.train.steps} at least as many"
        )
    topology = topology_from_env(os.environ, num_stages=config.parallel.num_stages)
    report = ProgressReporter(steps, start_step=0, is_main=topology.is_main).message
    with ExitStack() as held, started(topology, deterministic=config.deterministic) as runtime:
        out.mkdir(parents=True, exist_ok=True)
        shards = ready_shards(config, runtime=runtime, held=held, report=report)
        run = set_up(config, shards=shards, runtime=runtime, resume="ignore", report=report)
        try:
            found = measure(run, steps=steps, out=out)
        finally:
            run.loader.close()
    return found if topology.is_main else None


def measure(run: PretrainingRun, *, steps: int, out: Path) -> Profile:
    """Take steps of a run that stands ready: undisturbed, with a clock at each part, and traced; collective."""
    runtime, topology, precision = run.runtime, run.runtime.topology, run.ds_plan.precision
    for _ in range(_WARM_UP_STEPS):
        _take_step(run, clock=PartClock())
    peak_flops = total_peak_flops(runtime, precision)
    speed = _measure_speed(run, steps=steps, peak_flops=peak_flops)
    clock = PartClock(wait=lambda: _wait_for(runtime))
    flops = micro_batches = 0
    with counted_collectives(clock) as sent, run.engine.timed_parts(clock):
        for _ in range(steps):
            batches = _take_step(run, clock=clock)
            flops += run.hardware_flops(batches)
            micro_batches = len(batches)
    with clock.part(CHECKPOINT):
        run.engine.state(weights_only=run.config.checkpoint.weights_only)
    _trace(run, path=out / f"trace-rank{topology.rank:04d}.json.gz")
    of_ranks = _gather({part: clock.seconds[part] for part in (*STEP_PARTS, CHECKPOINT)}, runtime=runtime)
    sent_by_ranks = _gather({kind: sent[kind] for kind in KINDS}, runtime=runtime)
    all_flops = sum(_gather({"flops": float(flops)}, runtime=runtime)["flops"]) / topology.num_stages
    computing_s = sum(of_ranks[FORWARD]) + sum(of_ranks[BACKWARD])
    return Profile(
        world_size=topology.world_size,
        num_stages=topology.num_stages,
        zero_stage=run.ds_plan.zero_stage,
        precision=precision,
        micro_batches=micro_batches,
        steps=steps,
        peak_flops=peak_flops,
        speed=speed,
        parts={part: [seconds / steps for seconds in of_ranks[part]] for part in STEP_PARTS},
        checkpoint_s=max(of_ranks[CHECKPOINT]),
        checkpoint_every=run.config.checkpoint.every_steps,
        sent={kind: sum(values) / len(values) / steps for kind, values in sent_by_ranks.items()},
        expected=_expected_bytes(run, micro_batches=micro_batches),
        compute_efficiency=all_flops / computing_s / (peak_flops / topology.world_size),
    )


def _take_step(run: PretrainingRun, *, clock: PartClock) -> list[Batch]:
    """One step as training takes it, without logging, evaluation and saving; gives its micro-batches."""
    accept = run.spikes.accept if run.spikes is not None and run.spikes.on_spike == "skip" else None
    with clock.part(DATA_WAIT):
        batches = next(run.loader)
    with clock.part(OTHER):
        run.engine.train_step(batches, step=run.state.step, learning_rate=run.learning_rate(), accept=accept)
        run.state.step += 1
        run.state.applied_steps += run.engine.was_applied
        run.state.phase_applied_steps += run.engine.was_applied
    return batches


def _measure_speed(run: PretrainingRun, *, steps: int, peak_flops: float) -> dict[str, float]:
    """Figures of steps that no clock interrupts, of the whole job."""
    _wait_for(run.runtime)
    dist.barrier()
    tokens = flops = hardware_flops = 0
    started_s = time.perf_counter()
    for _ in range(steps):
        batches = _take_step(run, clock=PartClock())
        tokens += sum(batch.tokens for batch in batches)
        flops += run.flops(batches)
        hardware_flops += run.hardware_flops(batches)
    _wait_for(run.runtime)
    seconds = time.perf_counter() - started_s
    own = {
        "time/step_s": seconds / steps,
        "throughput/tokens_per_sec": tokens / seconds,
        "throughput/flops_per_sec": flops / seconds,
        "throughput/mfu": flops / seconds / peak_flops,
        "throughput/hfu": hardware_flops / seconds / peak_flops,
    }
    sums = {key: sum(values) for key, values in _gather(own, runtime=run.runtime).items()}
    return over_ranks(sums, topology=run.runtime.topology)


def _trace(run: PretrainingRun, *, path: Path) -> None:
    """Write a Chrome trace of a few steps, in which the parts stand by name; nothing waits for the device."""
    on_cuda = run.runtime.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    # Kineto, which does the work, would tell of its start and end on standard error.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    clock = PartClock()
    with torch.profiler.profile(activities=activities) as trace, run.engine.timed_parts(clock):
        for _ in range(_TRACED_STEPS):
            _take_step(run, clock=clock)
    trace.export_chrome_trace(str(path))


def _expected_bytes(run: PretrainingRun, *, micro_batches: int) -> StepBytes:
    config, ds_plan = run.config, run.ds_plan
    candidates = config.objective.candidates
    stages = plan_stages(config.model, bounds=stage_bounds(config), micro_batches=micro_batches, candidates=candidates)
    return step_bytes(
        config,
        stages=stages,
        zero_stage=ds_plan.zero_stage,
        dp_world_size=run.runtime.topology.dp_world_size,
        micro_batches=micro_batches,
        precision=ds_plan.precision,
        communication_type=str(ds_plan.config["communication_data_type"]),
    )


def _wait_for(runtime: Runtime) -> None:
    if runtime.device.type == "cuda":
        torch.cuda.synchronize(runtime.device)


def _gather(values: Mapping[str, float], *, runtime: Runtime) -> dict[str, list[float]]:
    """The numbers of all ranks, in their order, by the same keys."""
    own = torch.tensor([*values.values()], dtype=torch.float64, device=runtime.device)
    of_ranks = [torch.empty_like(own) for _ in range(runtime.topology.world_size)]
    dist.all_gather(of_ranks, own)
    return dict(zip(values, torch.stack(of_ranks).T.tolist(), strict=True))
