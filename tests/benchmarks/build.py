"""Building shards beside bare `sentencepiece.encode`, over the same text on the same cores."""

from __future__ import annotations

import heapq
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import sentencepiece

from data_pipeline.build import build_shards
from data_pipeline.tokenizer import MODEL_FILE
from tests.benchmarks.material import Material
from tests.benchmarks.report import Figure, Outcome
from tests.benchmarks.timing import Contender, paired_ratio, race

_TARGET_ON_ONE_CORE, _TARGET_ON_MORE = 0.8, 0.9
_OURS = "bertline, .jsonl.gz to shards on disk"
_PEER = "sentencepiece.encode, strings in memory"


def measure_build(material: Material, *, cores: int, rounds: int) -> Outcome:
    """Bytes of text a second with `cores` processes, on the `cores` cores this process must be held to.

    Our processes are started within the measured time; the peer's hold their text before it begins.
    """
    size = sum(len(text.encode("utf-8")) for text in material.read_text())
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bertline-bench-")))
        links = [stack.enter_context(_encoder(material, part=part, parts=cores)) for part in range(cores)]
        ours = Contender(
            _OURS,
            partial(_build, material, out=folder / "shards", workers=cores, size=size),
            begin=partial(shutil.rmtree, folder / "shards", ignore_errors=True),
        )
        peer = Contender(_PEER, partial(_encode_all, links, size=size))
        rates = race([ours, peer], rounds=rounds, seconds=0.0, label=f"build on {cores} core(s)")
    ratio = paired_ratio(rates[_OURS], rates[_PEER])
    return Outcome(
        title=f"Building shards: {cores} process(es) on {cores} core(s), {size / 1e6:.1f} MB of text",
        unit="bytes",
        rates=rates,
        figures=(
            Figure("bertline ÷ sentencepiece", ratio, target=_TARGET_ON_ONE_CORE if cores == 1 else _TARGET_ON_MORE),
        ),
        remarks=("bertline's time includes starting its workers, unpacking, parsing, splitting and flushing to disk",),
    )


def _build(material: Material, *, out: Path, workers: int, size: int) -> int:
    build_shards([material.text], tokenizer=material.tokenizer, out=out, workers=workers, progress=False)
    return size


def _encode_all(links: list[Connection], *, size: int) -> int:
    for link in links:
        link.send(True)
    for link in links:
        link.recv()
    return size


@contextmanager
def _encoder(material: Material, *, part: int, parts: int) -> Iterator[Connection]:
    """The link to a process that holds its share of the text and encodes all of it each time it is asked."""
    context = get_context("spawn")
    link, other_end = context.Pipe()
    process = context.Process(target=_serve, args=(other_end, material, part, parts), daemon=True)
    process.start()
    other_end.close()
    try:
        link.recv()
        yield link
    finally:
        link.close()
        process.join()


def _serve(link: Connection, material: Material, part: int, parts: int) -> None:
    documents = share_of(material.read_text(), part=part, parts=parts)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(material.tokenizer / MODEL_FILE))
    link.send(True)
    while True:
        try:
            link.recv()
        except EOFError:
            return
        processor.encode(documents, return_type="numpy", num_threads=1)
        link.send(True)


def share_of(documents: Iterable[str], *, part: int, parts: int) -> list[str]:
    """The documents of one of `parts` shares that hold about equally many bytes: each goes where least is so far."""
    sizes = [(0, number) for number in range(parts)]
    mine = []
    for text in documents:
        size, number = sizes[0]
        heapq.heapreplace(sizes, (size + len(text.encode("utf-8")), number))
        if number == part:
            mine.append(text)
    return mine
