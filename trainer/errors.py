"""The errors that a user is meant to see, and how they are printed."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

USER_ERROR_EXIT_CODE = 2
# EX_TEMPFAIL of sysexits.h: told to stop, saved, to be started again.
REQUEUE_EXIT_CODE = 75
# EX_UNAVAILABLE: another process of the job is gone.
LOST_RANK_EXIT_CODE = 69
_FIXES = {
    errno.ENOSPC: "make room there, or name a place on another disk",
    errno.EDQUOT: "make room within the quota, or name a place on another disk",
}
_LOCAL_RANKS = ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID")


class UserError(Exception):
    """A mistake or a condition that the user can mend: one line saying what, where, the rule and the fix."""


class LostRankError(UserError):
    """Another process of the job is gone: nothing the user did, and a new start goes on."""


class ReportedError(Exception):
    """A failure that one rank of the job has printed already; the command ends quietly with `exit_code`."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


def run_command(command: Callable[[], int]) -> int:
    """Run a command line's body and turn what a user can mend into one line and exit code 2.

    Before the ranks of a job have met, each meets the same mistake and the first of each host prints it, for hosts
    may differ; afterwards all ranks agree on who does (`trainer.runtime.started`).
    """
    try:
        return command()
    except ReportedError as error:
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output, `head` say, has left. Nor must Python complain when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UserError, OSError) as error:
        if _one_line(error) is None:
            raise
        local_rank = next((os.environ[name] for name in _LOCAL_RANKS if name in os.environ), "0")
        return print_error(error) if local_rank == "0" else USER_ERROR_EXIT_CODE
    except KeyboardInterrupt:
        return 130


@contextlib.contextmanager
def refusals_of(path: Path, *, written_as: Path) -> Iterator[None]:
    """Name `path` in an OSError that names nothing, as that of a full disk, or the name it has while it is written."""
    try:
        yield
    except OSError as error:
        where = error.filename2 or error.filename
        if where is not None and not Path(where).is_relative_to(written_as):
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def print_error(error: Exception) -> int:
    """Print what a user can mend as one line, anything else with its traceback; gives the exit code: 2, 69 or 1."""
    message = _one_line(error)
    if message is None:
        traceback.print_exception(error)
        return 1
    # On a full disk, where logs often are too, the exit code must still come through.
    with contextlib.suppress(OSError):
        print(f"error: {message}", file=sys.stderr, flush=True)
    return LOST_RANK_EXIT_CODE if isinstance(error, LostRankError) else USER_ERROR_EXIT_CODE


def _one_line(error: Exception) -> str | None:
    """The line for a user; None where only a programmer can help.

    A full disk and other refusals of the operating system are conditions of the machine, not of this program.
    """
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if not isinstance(error, OSError) or (error.filename is None and error.errno is None):
        return None
    # Of a copy the second name, for only its destination can be full or may not be written.
    where = error.filename2 or error.filename or "(while reading or writing)"
    fix = _FIXES.get(error.errno or 0)
    return f"{error.strerror or error}: {where}" + (f"; {fix}" if fix else "")
