"""One host's part of the preflight: says what this host has and sees, then which other hosts it reaches.

Run as a program it reads and writes one JSON object a line: an order in, {"look": ...} out; {"peers": ...} in,
{"unreached": [...]} out.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import shutil
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "deepspeed", "numpy", "webdataset", "sentencepiece", "pydantic", "safetensors", "mpi4py")
_FOLDERS = ("cluster", "trainer", "data_pipeline", "ds_configs")
_REACH_S = 5.0


def look(order: Mapping[str, Any]) -> dict[str, Any]:
    """What this host has, by the names under which a fault is told.

    order: `same`, files that must hold the same everywhere; `seen`, a path that must exist; `disk`, the folder whose
    free bytes count, or its nearest parent that there is.
    """
    disk = Path(order["disk"])
    while not disk.exists():
        disk = disk.parent
    return {
        "same": {
            "Python": platform.python_version(),
            **{f"the package {name}": _version(name) for name in _PACKAGES},
            "the code": _code(),
            **{path: _digest(Path(path)) for path in order["same"]},
        },
        "sees": Path(order["seen"]).exists(),
        "free_bytes": shutil.disk_usage(disk).free,
        "clock_s": time.time(),
    }


def unreached(peers: Mapping[str, int]) -> list[str]:
    """The hosts on whose port nobody answers in time."""
    failed = []
    for host, port in peers.items():
        try:
            socket.create_connection((host, port), timeout=_REACH_S).close()
        except OSError:
            failed.append(host)
    return failed


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _code() -> str:
    """A digest of the project's files, by name and content."""
    root, digest = Path(__file__).resolve().parent.parent, hashlib.sha256()
    for folder in _FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in {".py", ".yaml", ".json"}:
                digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    except OSError:
        return "absent"


def _answer(server: socket.socket) -> None:
    while True:
        server.accept()[0].close()


def _serve() -> None:
    with socket.create_server(("", 0), backlog=1024) as server:
        threading.Thread(target=_answer, args=(server,), daemon=True).start()
        for line in sys.stdin:
            order = json.loads(line)
            if "peers" in order:
                reply: dict[str, Any] = {"unreached": unreached(order["peers"])}
            else:
                reply = {"look": {**look(order), "port": server.getsockname()[1]}}
            sys.stdout.write(json.dumps(reply) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    _serve()
