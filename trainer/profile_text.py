"""What `trainer profile` found, as a table for a person and as figures for a program."""

from __future__ import annotations

from dataclasses import asdict
from statistics import mean
from typing import Any

from trainer.profile_run import Profile

_MIB = 1 << 20


def describe_profile(profile: Profile) -> list[str]:
    """The table, line by line."""
    speed = profile.speed
    lines = [
        f"{profile.world_size} process(es), {profile.num_stages} stage(s), ZeRO stage {profile.zero_stage}, "
        f"{profile.precision}, {profile.micro_batches} micro-batch(es) a step; means over {profile.steps} steps",
        "",
        *_parts_table(profile),
        "",
        f"{'step':<24}{speed['time/step_s']:.4f} s without clocks",
        f"{'speed':<24}{speed['throughput/tokens_per_sec']:,.0f} tokens/s",
        f"{'model FLOPs':<24}{speed['throughput/flops_per_sec'] / 1e12:.4g} TFLOP/s of a matmul peak of "
        f"{profile.peak_flops / 1e12:.4g}: MFU {speed['throughput/mfu']:.3f}",
        f"{'hardware FLOPs':<24}HFU {speed['throughput/hfu']:.3f}, layers that are computed again counted too",
        f"{'compute efficiency':<24}{profile.compute_efficiency:.3f} of the peak within forward and backward",
    ]
    if profile.num_stages > 1:
        lines.append(f"{'bubble':<24}{profile.bubble:.3f}; (p - 1) / (m + p - 1) is {profile.expected_bubble:.3f}")
    return [*lines, "", *_bytes_table(profile)]


def profile_figures(profile: Profile) -> dict[str, Any]:
    """Every number of the profile, as plain values."""
    return {
        **asdict(profile),
        "bubble": profile.bubble if profile.num_stages > 1 else None,
        "expected_bubble": profile.expected_bubble,
        "expected_bytes": profile.expected.total,
    }


def _parts_table(profile: Profile) -> list[str]:
    parts = {part: of_ranks for part, of_ranks in profile.parts.items() if any(of_ranks)}
    whole = sum(mean(of_ranks) for of_ranks in parts.values())
    lines = [f"{'part of a step':<24}{'mean s':>10}{'share':>9}{'least s':>10}{'most s':>10}   of the ranks"]
    for part, of_ranks in parts.items():
        lines.append(
            f"{part:<24}{mean(of_ranks):>10.4f}{mean(of_ranks) / whole:>9.1%}{min(of_ranks):>10.4f}"
            f"{max(of_ranks):>10.4f}"
        )
    a_step = profile.checkpoint_s / profile.checkpoint_every
    return [
        *lines,
        f"{'with clocks':<24}{whole:>10.4f}",
        f"{'checkpoint, a step':<24}{a_step:>10.4f}{'':9}stops training {profile.checkpoint_s:.4f} s once in "
        f"{profile.checkpoint_every} steps",
    ]


def _bytes_table(profile: Profile) -> list[str]:
    lines = [f"{'sent a step':<24}{'MiB':>10}   by an average rank"]
    lines += [f"{kind:<24}{size / _MIB:>10.3f}" for kind, size in profile.sent.items() if size]
    measured, expected = sum(profile.sent.values()), profile.expected
    named = {
        "gradients": expected.gradients,
        "weights": expected.weights,
        "tied matrix": expected.tied,
        "to other stages": expected.border,
    }
    parts = ", ".join(f"{name} {size / _MIB:.3f}" for name, size in named.items() if size) or "nothing to send"
    return [
        *lines,
        f"{'measured':<24}{measured / _MIB:>10.3f}",
        f"{'in theory':<24}{expected.total / _MIB:>10.3f}   {parts}",
    ]
