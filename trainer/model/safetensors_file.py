"""Weights in a safetensors file, as any other file is written."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], *, metadata: dict[str, str] | None = None) -> None:
    """Write tensors, each contiguous, to a new file; OSError that names it where the system refuses, as on a full disk.

    safetensors wraps the system's refusal in an error of its own, and lets nobody but the owner read its files.
    """
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    try:
        save_file(dict(tensors), path, metadata=metadata)
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        number = int(code.group(1)) if code else None
        raise OSError(number, os.strerror(number) if number else str(error), str(path)) from error
    path.chmod(mode)
