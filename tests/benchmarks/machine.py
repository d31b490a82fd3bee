"""What the benchmarks ran on."""

from __future__ import annotations

import importlib.metadata
import platform
from datetime import datetime, timezone
from pathlib import Path

from tests.benchmarks.isolation import usable_cores

_PACKAGES = ("torch", "deepspeed", "transformers", "webdataset", "sentencepiece", "numpy")
_CPU_INFO = Path("/proc/cpuinfo")


def describe_machine() -> dict[str, str]:
    """Date, processor and versions, each as one line."""
    packages = " · ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{_processor()}, {len(usable_cores())} cores",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "versions": packages,
    }


def _processor() -> str:
    lines = _CPU_INFO.read_text(encoding="utf-8").splitlines() if _CPU_INFO.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, "") or platform.processor() or platform.machine()
