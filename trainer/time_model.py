"""How long a step will take, from figures of devices and links: a small model whose every term can be checked.

compute        FLOPs of the dearest stage / (matmul peak x efficiency)
bubble         (p - 1) times that of one micro-batch, 1F1B (Narayanan et al. 2021, section 2.2)
communication  bytes a rank sends on a ring / the rate of the slowest link that its ring crosses
update         bytes that AdamW reads and writes / the rate of the device's memory

Where gradients are reduced during the backward pass (`overlap_comm`, on GPUs) they cost what the backward pass, two
thirds of the compute time, does not hide; stage 3's gathering of weights, fetched ahead, what all of it does not. All
else is waited for.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.communication_volume import StepBytes
from trainer.device_figures import DeviceFigures

# fp32 weight, gradient and two means are read and all but the gradient written (28 bytes); the norm reads the gradient
# once more, and clipping reads and writes it (12).
_UPDATE_BYTES = 40
_BACKWARD_SHARE = 2 / 3


@dataclass(frozen=True)
class Hardware:
    """`count` devices of one kind; `network_rate` is bytes a second, one way, of a device to another machine.

    efficiency: the share of the matmul peak that forward and backward passes reach.
    """

    device: DeviceFigures
    count: int
    network_rate: float
    efficiency: float

    def rate_among(self, ranks: int) -> float:
        """Of the slowest link in a ring over so many ranks that follow each other."""
        within = ranks <= self.device.devices_a_machine
        return self.device.link_rate if within else min(self.device.link_rate, self.network_rate)


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step by what they go to."""

    compute_s: float
    bubble_s: float
    communication_s: float
    update_s: float

    @property
    def step_s(self) -> float:
        return self.compute_s + self.bubble_s + self.communication_s + self.update_s


def predict_step(
    hardware: Hardware,
    *,
    precision: str,
    flops: float,
    busiest_share: float,
    micro_batches: int,
    num_stages: int,
    zero_stage: int,
    sent: StepBytes,
    overlaps: bool,
    stage_parameters: int,
) -> StepTime:
    """The time of a step in which each replica spends `flops` on a micro-batch, `busiest_share` of it in one stage."""
    dp_world_size = hardware.count // num_stages
    a_micro_batch = flops * busiest_share / (hardware.device.peak_flops[precision] * hardware.efficiency)
    compute_s = micro_batches * a_micro_batch
    among_replicas, among_all = hardware.rate_among(dp_world_size), hardware.rate_among(hardware.count)
    hidden_bytes = (sent.gradients + (sent.weights if zero_stage == 3 else 0.0)) if overlaps else 0.0
    hiding_s = compute_s * (1.0 if zero_stage == 3 else _BACKWARD_SHARE)
    communication_s = max(0.0, hidden_bytes / among_replicas - hiding_s)
    communication_s += (sent.gradients + sent.weights - hidden_bytes) / among_replicas + sent.tied / among_all
    if num_stages > 1:
        # A stage in the middle has two borders, and each is waited for on both of its sides.
        a_border = sent.border * num_stages / (num_stages - 1)
        communication_s += min(2, num_stages - 1) * a_border / among_all
    updated = stage_parameters / (dp_world_size if zero_stage > 0 else 1)
    return StepTime(
        compute_s=compute_s,
        bubble_s=(num_stages - 1) * a_micro_batch,
        communication_s=communication_s,
        update_s=updated * _UPDATE_BYTES / hardware.device.memory_rate,
    )
