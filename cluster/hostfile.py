"""A hostfile, `NAME slots=N` a line, as DeepSpeed and Open MPI read it, but strict."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import UserError

# No leading dash, which ssh would take for an option, and nothing that a shell reads.
_LINE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s+slots=([0-9]{1,6})$")


@dataclass(frozen=True)
class Host:
    """A host's name and how many processes it takes."""

    name: str
    slots: int


def parse_hostfile(text: str, *, source: str) -> tuple[Host, ...]:
    """The hosts of a hostfile's text, in order; UserError naming `source` and line for what is no host."""
    hosts: dict[str, tuple[Host, int]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        content = line.partition("#")[0].strip()
        if not content:
            continue
        where, match = f"{source}:{number}", _LINE.match(content)
        if match is None:
            raise UserError(f"{where}: {content!r} is not of the form NAME slots=N, as in node1 slots=8")
        host = Host(match[1], int(match[2]))
        if host.slots == 0:
            raise UserError(f"{where}: {host.name} has slots=0; give it at least 1 or remove the line")
        if host.name in hosts:
            raise UserError(f"{where}: {host.name} stands already on line {hosts[host.name][1]}; remove one")
        hosts[host.name] = (host, number)
    if not hosts:
        raise UserError(f"{source}: names no host; write a line NAME slots=N for each")
    return tuple(host for host, _ in hosts.values())


def read_hostfile(path: Path) -> tuple[Host, ...]:
    """The hosts of a file; UserError when it is absent or wrong."""
    try:
        return parse_hostfile(path.read_text(encoding="utf-8"), source=str(path))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not text at byte {error.start}; write a line NAME slots=N for each host") from None
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"--hostfile {path}: no such file; write a line NAME slots=N for each host") from None


def fill(hosts: Sequence[Host], *, processes: int) -> tuple[Host, ...]:
    """The hosts that so many processes take, each filled before the next."""
    used: list[Host] = []
    for host in hosts:
        taken = min(host.slots, processes)
        processes -= taken
        used += [Host(host.name, taken)] if taken else []
    return tuple(used)


def check_names(hosts: Sequence[Host], *, source: Path) -> None:
    """Raise UserError for the first host whose name nothing here resolves."""
    for host in hosts:
        try:
            socket.getaddrinfo(host.name, None)
        except OSError as error:
            raise UserError(
                f"{source}: {host.name} is an unknown host ({error}); correct the name, or add it to DNS or /etc/hosts"
            ) from None
