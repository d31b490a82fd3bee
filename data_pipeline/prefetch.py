"""Runs an iterator ahead of its consumer in a background thread, and never hides its failure."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error


class _End:
    pass


class Prefetcher(Generic[Item]):
    """Iterates over `source` with up to `depth` items made ahead.

    An exception in `source` is raised again by the consumer's next step, after the items made before it.
    `close` ends the thread; an abandoned prefetcher does not keep the process alive.
    """

    def __init__(self, source: Iterable[Item], *, depth: int) -> None:
        self._queue: queue.Queue[Item | _Failure | _End] = queue.Queue(maxsize=depth)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(source,), name="bertline-prefetch", daemon=True)
        self._thread.start()

    def _run(self, source: Iterable[Item]) -> None:
        try:
            for item in source:
                if not self._put(item):
                    return
            self._put(_End())
        except BaseException as error:
            self._put(_Failure(error))

    def _put(self, item: Item | _Failure | _End) -> bool:
        while not self._stopping.is_set():
            try:
                self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        if self._stopping.is_set():
            raise StopIteration
        item = self._queue.get()
        if isinstance(item, _Failure):
            self.close()
            raise item.error
        if isinstance(item, _End):
            self.close()
            raise StopIteration
        return item

    def close(self) -> None:
        """Stop making items; safe to call twice."""
        self._stopping.set()
        if self._thread is not threading.current_thread():
            self._thread.join()
