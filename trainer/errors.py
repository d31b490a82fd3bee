"""The one exception a user is meant to see, and how it is printed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

USER_ERROR_EXIT_CODE = 2


class UserError(Exception):
    """A mistake or a condition that the user can mend: one line saying what, where, the rule and the fix."""


def run_command(command: Callable[[], int], *, may_print: Callable[[], bool] | None = None) -> int:
    """Run a command line's body and turn what a user can mend into one line and exit code 2.

    Every rank of a job meets the same mistake, so one prints it: the first of which `may_print` is true, by
    default rank 0. A full disk and other refusals of the operating system are conditions of the machine, not of
    this program: one line too.
    """
    try:
        return command()
    except UserError as error:
        message = str(error)
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        where = f" {error.filename}" if error.filename else ""
        message = f"{error.strerror or error}:{where or ' (while reading or writing)'}"
    except KeyboardInterrupt:
        return 130
    if os.environ.get("RANK", "0") == "0" if may_print is None else may_print():
        print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return USER_ERROR_EXIT_CODE
