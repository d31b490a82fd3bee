"""Trying again while a source is away: exponential back-off with jitter, within a bounded time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from trainer.errors import UserError

Result = TypeVar("Result")
_LAST_DOUBLING = 16


@dataclass(frozen=True)
class RetryPolicy:
    """Waits between tries double from `first_wait_s` to `longest_wait_s`; no try begins after `total_s`."""

    total_s: float = 300.0
    first_wait_s: float = 0.25
    longest_wait_s: float = 20.0


# What a command needs before it begins, and what it reads once it runs.
OPENING = RetryPolicy(total_s=30.0)
READING = RetryPolicy(total_s=300.0)


class TransientError(Exception):
    """A try that failed in a way that may pass."""


class SourceAway(UserError):
    """A source that did not answer within the time that a policy gives it."""


def retry(
    attempt: Callable[[], Result],
    *,
    what: str,
    policy: RetryPolicy,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
    draw: Callable[[], float] = random.random,
) -> Result:
    """The result of the first `attempt` that raises no TransientError; any other exception passes at once.

    Half of each wait is drawn at random, so that ranks do not come back all at once (Brooker 2015, "Exponential
    Backoff And Jitter"). Raises SourceAway naming `what`, the number of tries and the last error.
    """
    began = clock()
    tries = 0
    while True:
        tries += 1
        try:
            return attempt()
        except TransientError as error:
            wait = min(policy.longest_wait_s, policy.first_wait_s * 2 ** min(tries - 1, _LAST_DOUBLING))
            wait *= (1.0 + draw()) / 2.0
            spent = clock() - began
            if spent + wait > policy.total_s:
                raise SourceAway(
                    f"{what} could not be read: {tries} tries in {spent:.0f} s, the last one: {error}; see whether the "
                    "source is up and can be reached from this machine, then run the same again"
                ) from error
        sleep(wait)
