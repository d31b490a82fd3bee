"""Public figures of devices that a job may be planned for: matmul peak, memory, and how fast data goes to and fro."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from trainer.device_peak import device_peak_flops
from trainer.errors import UserError

_GB = 10**9
_GIB = 1 << 30


@dataclass(frozen=True)
class DeviceFigures:
    """One device of a job. Rates are in bytes a second: of its own memory, and one way to another in its machine.

    peak_flops: dense matmul peak, FLOP/s, by precision; none for one that the device lacks.
    """

    name: str
    peak_flops: Mapping[str, float]
    memory_bytes: int
    memory_rate: float
    link_rate: float
    devices_a_machine: int


# (as torch names it, memory GB, memory GB/s, link GB/s one way, devices in the maker's usual machine). The matmul
# peaks are those of trainer.device_peak. Makers give links both ways together; here is half of that.
_TABLE: dict[str, tuple[str, int, float, float, int]] = {
    "b200": ("B200", 180, 8000, 900, 8),  # NVIDIA DGX B200 data sheet: 1,440 GB, 64 TB/s, NVLink 14.4 TB/s of eight
    "h200": ("H200", 141, 4800, 450, 8),  # NVIDIA H200 data sheet, SXM: NVLink 900 GB/s
    "h100": ("H100", 80, 3350, 450, 8),  # NVIDIA H100 data sheet, SXM: NVLink 900 GB/s
    "a100": ("A100", 80, 2039, 300, 8),  # NVIDIA A100 data sheet, SXM 80 GB: NVLink 600 GB/s
    "a100-40gb": ("A100", 40, 1555, 300, 8),  # NVIDIA A100 data sheet, SXM 40 GB
    "l40s": ("L40S", 48, 864, 32, 8),  # NVIDIA L40S data sheet: PCIe Gen4 x16, 64 GB/s
    "a10": ("A10", 24, 600, 32, 4),  # NVIDIA A10 data sheet: PCIe Gen4 x16, 64 GB/s
    "l4": ("L4", 24, 300, 32, 8),  # NVIDIA L4 data sheet: PCIe Gen4 x16, 64 GB/s
    "v100": ("V100", 32, 900, 150, 8),  # NVIDIA V100 data sheet, SXM2 32 GB: NVLink 300 GB/s
    "t4": ("T4", 16, 320, 16, 4),  # NVIDIA T4 data sheet: PCIe Gen3 x16, 32 GB/s
    "mi300x": ("MI300X", 192, 5300, 448, 8),  # AMD MI300X data sheet: seven Infinity Fabric links, 896 GB/s
}
_PRECISIONS = ("fp32", "bf16", "fp16")


def device_figures(name: str) -> DeviceFigures:
    """The figures of a device by its name here, `h100`; UserError for one that is not in the table."""
    if name not in _TABLE:
        nearest = difflib.get_close_matches(name, _TABLE, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"there are cpu, {', '.join(_TABLE)}"
        raise UserError(f"--gpus names {name!r}, of which there are no figures; {hint}")
    torch_name, memory, memory_rate, link_rate, devices = _TABLE[name]
    peaks = {precision: device_peak_flops(torch_name, precision) for precision in _PRECISIONS}
    return DeviceFigures(
        name=name,
        peak_flops={precision: peak for precision, peak in peaks.items() if peak is not None},
        # What makers call GB here is GiB but for what the driver keeps.
        memory_bytes=memory * _GIB,
        memory_rate=memory_rate * _GB,
        link_rate=link_rate * _GB,
        devices_a_machine=devices,
    )
