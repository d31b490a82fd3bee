"""Fresh processes that own as many cores, and start as many threads, as they are told."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import ParamSpec, TypeVar

from trainer.errors import UserError

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
Arguments = ParamSpec("Arguments")
Value = TypeVar("Value")


def usable_cores() -> list[int]:
    """The cores that this process may use; UserError where a process cannot be held to some of them."""
    if not hasattr(os, "sched_getaffinity"):
        raise UserError("the benchmarks hold processes to cores, which this operating system cannot; run them on Linux")
    return sorted(os.sched_getaffinity(0))


def run_on_cores(
    cores: int, function: Callable[Arguments, Value], /, *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Value:
    """What `function` gives in a new process that has only `cores` cores and threads from its first instruction.

    Raises what it raises, and UserError when the process was killed.
    """
    with _held_to(cores), ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        try:
            return executor.submit(function, *args, **kwargs).result()
        except BrokenProcessPool as error:
            raise UserError(
                "a benchmark's process was killed, perhaps for want of memory; take less text by --documents N"
            ) from error


@contextmanager
def _held_to(cores: int) -> Iterator[None]:
    """Hold this thread to the last `cores` cores: the processes it starts meanwhile inherit that, and their threads."""
    usable = usable_cores()
    before = {name: os.environ.get(name) for name in _THREADS}
    os.sched_setaffinity(0, usable[-cores:])
    os.environ.update({name: str(cores) for name in _THREADS})
    try:
        yield
    finally:
        os.sched_setaffinity(0, usable)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
