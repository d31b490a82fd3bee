"""A command ready to be started: argv, what it adds to the environment, and the files it reads."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trainer.errors import UserError


@dataclass(frozen=True)
class Launch:
    """argv is never given to a shell. environment: set on top of the caller's. files: written before the start."""

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[Path, str] = field(default_factory=dict)

    def text(self) -> str:
        """All of it in a form that a shell would read the same way: files, then environment, then the command."""
        parts = [f"# {path}:\n{content.rstrip()}\n" for path, content in self.files.items()]
        parts += [f"export {name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return "\n".join([*parts, shlex.join(self.argv)])

    def write_files(self) -> None:
        """Write the files, with the folders they lie in."""
        for path, content in self.files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")

    def become(self) -> None:
        """Turn this process into the command, so that signals and exit code are its own; does not return."""
        self.write_files()
        environment = {**os.environ, **self.environment}
        sys.stdout.flush()
        try:
            os.execvpe(self.argv[0], self.argv, environment)
        except FileNotFoundError:
            raise UserError(f"{self.argv[0]} is not on the PATH; install it, or load its module") from None


def first_line(said: Sequence[str | bytes]) -> str:
    """The first line that a failed command said, for a message of one line."""
    texts = [part.decode(errors="replace") if isinstance(part, bytes) else part for part in said]
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    return lines[0] if lines else "it said nothing"
