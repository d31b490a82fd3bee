"""Tokenizing chunks by several workers at once, with the results in the order of the chunks.

sentencepiece lets other threads run while it works, and takes seven eighths of a worker's time: two workers are
threads of this process, to which no text need be sent. More would wait for each other in what remains (parsing,
hashing for the split, joining), and are processes; so are those of a segmenter in Python.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterator, Set
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_all_start_methods, get_context
from multiprocessing.context import BaseContext

from data_pipeline.build_worker import EncodedChunk, EncodeJob, encode_chunk, encode_in_worker, start_worker
from data_pipeline.shard_writer import KEPT
from data_pipeline.text import Chunk
from trainer.errors import UserError

_CHUNKS_A_WORKER = 4
_MOST_THREADS = 2
_INPUT_BYTES_A_WORKER = 8 << 20


def encode_in_order(
    chunks: Iterator[tuple[int, Chunk]], *, job: EncodeJob, workers: int, executor: Executor | None = None
) -> Generator[tuple[int, EncodedChunk], None, None]:
    """Encode chunks, by `workers` at once when there is more than one; results come in the order of the chunks.

    `executor` is where they are encoded, if not by workers of our own. Each chunk comes with a number that is
    handed through. Only a few chunks are under way at any time. Raises the first UserError in input order, and one
    when a worker was killed.
    """
    if workers == 1 and executor is None:
        for number, (tag, chunk) in enumerate(chunks):
            yield tag, encode_chunk(chunk, number=number, job=job)
        return
    own = executor is None
    others = {child.pid for child in active_children()}
    executor = executor or _own_executor(workers, job=job)
    under_way: deque[tuple[int, Future[EncodedChunk]]] = deque()
    try:
        first_worker = executor.submit(os.getpid)
        for number, (tag, chunk) in enumerate(chunks):
            if not under_way and not first_worker.done():
                # The workers are still starting: this process would only wait for them.
                yield tag, encode_chunk(chunk, number=number, job=job)
                continue
            under_way.append((tag, _submit(executor, chunk, number=number, job=job)))
            if len(under_way) >= workers * _CHUNKS_A_WORKER:
                tag, future = under_way.popleft()
                yield tag, future.result()
        for tag, future in under_way:
            yield tag, future.result()
    except BrokenProcessPool as error:
        _end_workers(others)
        raise UserError(
            f"a build worker was killed, perhaps for want of memory, or could not start because the calling script "
            f"does its work outside `if __name__ == '__main__'`; {KEPT}: run the same again, with fewer --workers "
            f"than {workers} if memory is short"
        ) from error
    finally:
        for _, future in under_way:
            future.cancel()
        if own:
            executor.shutdown(cancel_futures=True)


def _own_executor(workers: int, *, job: EncodeJob) -> Executor:
    if workers <= _MOST_THREADS and job.word_starts == "vocabulary":
        return ThreadPoolExecutor(workers)
    return ProcessPoolExecutor(workers, mp_context=_worker_context(), initializer=start_worker)


def _submit(executor: Executor, chunk: Chunk, *, number: int, job: EncodeJob) -> Future[EncodedChunk]:
    try:
        return executor.submit(encode_in_worker, chunk, number, job)
    except OSError as error:
        # While the executor tidies up after a killed worker, its own pipe may be closed under a submission.
        raise BrokenProcessPool(str(error)) from error


def _end_workers(others: Set[int | None]) -> None:
    """End the processes of a broken pool; `others` are of somebody else.

    Until Python 3.12 a pool that ends its workers misses one that is just being started, and waits for it without end.
    """
    for child in active_children():
        if child.pid not in others:
            child.terminate()


def _worker_context() -> BaseContext:
    """Workers forked from a server that has imported what they need once; plain forks of a threaded parent may hang."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(["data_pipeline.build_worker"])
    return context


def suitable_workers(input_bytes: int) -> int:
    """The cores this process may use, or fewer where starting a worker would take longer than its share of work."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 1 + input_bytes // _INPUT_BYTES_A_WORKER)
