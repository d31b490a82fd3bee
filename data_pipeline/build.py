"""Building token shards: raw text in, a folder of shards with manifest out, the same bytes by any number of workers.

The main process cuts the input into chunks and assembles what comes back, in input order; workers parse and
tokenize. An interrupted build keeps its finished shards and goes on behind them.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.context import BaseContext
from pathlib import Path

from data_pipeline.atomic import write_atomically
from data_pipeline.blocks import BlockAssembler, default_block_tokens
from data_pipeline.build_record import BuildRecord, begin_build
from data_pipeline.build_worker import EncodedChunk, EncodeJob, encode_chunk, encode_in_worker, start_worker
from data_pipeline.inputs import InputFile, expand_inputs
from data_pipeline.manifest import (
    MANIFEST_FILE,
    SPLITS,
    Manifest,
    SplitName,
    load_manifest,
    manifest_bytes,
    token_dtype,
)
from data_pipeline.progress import BuildProgress
from data_pipeline.shard_writer import KEPT, ShardWriter, finished_shards
from data_pipeline.text import DEFAULT_MAX_DOCUMENT_BYTES, Chunk, DocumentRule, TextOptions, check_options, read_chunks
from data_pipeline.tokenizer import Tokenizer, copy_tokenizer
from trainer.errors import UserError

DEFAULT_SHARD_TOKENS = 67_108_864
DEFAULT_VALIDATION_FRACTION = 0.01
TOKENIZER_FOLDER = "tokenizer"
_CHUNKS_A_WORKER = 4
_INPUT_BYTES_A_WORKER = 8 << 20


def build_shards(
    paths: Sequence[str | Path],
    *,
    tokenizer: str | Path,
    out: str | Path,
    workers: int | None = None,
    shard_tokens: int = DEFAULT_SHARD_TOKENS,
    block_tokens: int | None = None,
    validation_fraction: float = DEFAULT_VALIDATION_FRACTION,
    document: DocumentRule = "line",
    text_field: str = "text",
    max_document_bytes: int = DEFAULT_MAX_DOCUMENT_BYTES,
    progress: bool = True,
) -> Manifest:
    """Build token shards in the folder `out`, or go on with an interrupted build there; one process calls this.

    `workers` defaults to the cores this process may use (fewer for a small input), `block_tokens` to 98,304 (uint16)
    or 49,152 (uint32). A finished build of the same input and settings returns at once. Raises UserError for bad
    input, other settings than those `out` was begun with, a full disk and a killed worker; finished shards are kept.
    """
    folder = Path(out)
    options = TextOptions(document, text_field, max_document_bytes)
    _check_settings(workers, shard_tokens, block_tokens, validation_fraction)
    files = expand_inputs(paths)
    workers = _suitable_workers(files) if workers is None else workers
    check_options(files, options=options)
    loaded = Tokenizer.load(tokenizer)
    record = BuildRecord.of(
        files,
        tokenizer_sha256=loaded.sha256,
        shard_tokens=shard_tokens,
        block_tokens=block_tokens or default_block_tokens(token_dtype(loaded.vocab_size)),
        validation_fraction=validation_fraction,
        document=document,
        text_field=text_field,
    )
    with begin_build(folder, record=record) as already_built:
        if not already_built:
            copy_tokenizer(loaded, folder=folder / TOKENIZER_FOLDER)
            _build(
                files, options=options, record=record, tokenizer=loaded, folder=folder, workers=workers, shown=progress
            )
    return load_manifest(folder)


def _build(
    files: list[InputFile],
    *,
    options: TextOptions,
    record: BuildRecord,
    tokenizer: Tokenizer,
    folder: Path,
    workers: int,
    shown: bool,
) -> None:
    finished = {split: finished_shards(folder, split=split) for split in SPLITS}
    job = EncodeJob(
        tokenizer=str(folder / TOKENIZER_FOLDER),
        options=options,
        validation_fraction=record.validation_fraction,
        done={split: (end.chunk, end.document_in_chunk) for split, (_, end) in finished.items()},
    )
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(
                ShardWriter(folder, split=split, shard_tokens=record.shard_tokens, finished=finished[split][0])
            )
            for split in SPLITS
        }
        bar = stack.enter_context(BuildProgress(total_bytes=sum(file.size for file in files), enabled=shown))
        encoded = stack.enter_context(
            closing(encode_in_order(_chunks(files, options=options), job=job, workers=workers))
        )
        documents = _write_shards(encoded, writers=writers, block_tokens=record.block_tokens, bar=bar)
    _check_splits(writers, fraction=record.validation_fraction, documents=documents, folder=folder)
    content = manifest_bytes(
        {split: writers[split].shards for split in SPLITS},
        block_tokens=record.block_tokens,
        vocab_size=tokenizer.vocab_size,
        tokenizer_sha256=tokenizer.sha256,
        special_token_ids=tokenizer.special_token_ids,
        input_documents=documents,
    )
    write_atomically(folder / MANIFEST_FILE, content, kept=KEPT)


def _write_shards(
    encoded_chunks: Iterable[tuple[int, EncodedChunk]],
    *,
    writers: dict[SplitName, ShardWriter],
    block_tokens: int,
    bar: BuildProgress,
) -> int:
    """Assemble the chunks, in input order, into the shards of each split; gives the number of documents read."""
    assemblers = {split: BlockAssembler(block_tokens=block_tokens) for split in SPLITS}
    documents = 0
    for number, (done_bytes, encoded) in enumerate(encoded_chunks):
        for split, part in encoded.splits.items():
            for block in assemblers[split].add(part, chunk=number, documents_before=documents):
                writers[split].write(block)
        documents += encoded.documents
        tokens = sum(writer.tokens for writer in writers.values())
        bar.update(done_bytes=done_bytes, documents=documents, tokens=tokens)
    for split in SPLITS:
        for block in assemblers[split].finish():
            writers[split].write(block)
        writers[split].finish()
    return documents


def encode_in_order(
    chunks: Iterator[tuple[int, Chunk]], *, job: EncodeJob, workers: int
) -> Generator[tuple[int, EncodedChunk], None, None]:
    """Encode chunks, by worker processes when there is more than one; results come in the order of the chunks.

    Each chunk comes with a number that is handed through. Only a few chunks are under way at any time. Raises the
    first UserError in input order, and one when a worker was killed.
    """
    if workers == 1:
        for number, (tag, chunk) in enumerate(chunks):
            yield tag, encode_chunk(chunk, number=number, job=job)
        return
    executor = ProcessPoolExecutor(workers, mp_context=_worker_context(), initializer=start_worker)
    try:
        under_way: deque[tuple[int, Future[EncodedChunk]]] = deque()
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
        raise UserError(
            f"a build worker was killed, perhaps for want of memory, or could not start because the calling script "
            f"does its work outside `if __name__ == '__main__'`; {KEPT}: run the same again, with fewer --workers "
            f"than {workers} if memory is short"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _submit(executor: ProcessPoolExecutor, chunk: Chunk, *, number: int, job: EncodeJob) -> Future[EncodedChunk]:
    try:
        return executor.submit(encode_in_worker, chunk, number, job)
    except OSError as error:
        # While the executor tidies up after a killed worker, its own pipe may be closed under a submission.
        raise BrokenProcessPool(str(error)) from error


def _worker_context() -> BaseContext:
    """Workers forked from a server that has imported what they need once; plain forks of a threaded parent may hang."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(["data_pipeline.build_worker"])
    return context


def _suitable_workers(files: list[InputFile]) -> int:
    """The cores this process may use, or fewer where starting a worker would take longer than its share of work."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 1 + sum(file.size for file in files) // _INPUT_BYTES_A_WORKER)


def _chunks(files: list[InputFile], *, options: TextOptions) -> Iterator[tuple[int, Chunk]]:
    """Every chunk of the input with the bytes of the input that are then behind."""
    before = 0
    for file in files:
        for chunk in read_chunks(file, options=options):
            yield before + chunk.input_position, chunk
        before += file.size


def _check_settings(
    workers: int | None, shard_tokens: int, block_tokens: int | None, validation_fraction: float
) -> None:
    for name, value in {"workers": workers, "shard-tokens": shard_tokens, "block-tokens": block_tokens}.items():
        if value is not None and value < 1:
            raise UserError(f"--{name} {value} is too small; it must be at least 1")
    if not 0.0 <= validation_fraction < 1.0:
        raise UserError(f"--validation-fraction {validation_fraction} is outside [0, 1); the usual one is 0.01")


def _check_splits(writers: dict[SplitName, ShardWriter], *, fraction: float, documents: int, folder: Path) -> None:
    again = f"then build into another folder, or remove {folder}"
    if documents == 0:
        raise UserError(f"the input holds no document, only blank lines; name files with text, {again}")
    if not writers["train"].tokens and not writers["validation"].tokens:
        raise UserError(f"none of the {documents} documents holds a token of the vocabulary; name other files, {again}")
    if not writers["train"].tokens:
        raise UserError(
            f"--validation-fraction {fraction} of {documents} documents leaves none to train on; lower it, {again}"
        )
    if fraction > 0.0 and not writers["validation"].tokens:
        raise UserError(
            f"--validation-fraction {fraction} of {documents} documents holds none out; "
            f"raise it, or set it to 0 for no validation part, {again}"
        )
