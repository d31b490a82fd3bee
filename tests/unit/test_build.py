from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures.process import ProcessPoolExecutor, _ExecutorManagerThread
from pathlib import Path
from typing import Any

import pytest
from small_corpus import folder_bytes, made_up_documents, small_tokenizer, write_lines

from data_pipeline import build_pool
from data_pipeline.build import build_shards
from data_pipeline.build_pool import encode_in_order
from data_pipeline.build_worker import EncodeJob
from data_pipeline.manifest import Manifest
from data_pipeline.text import LineChunk, TextOptions
from data_pipeline.tokenizer import train_tokenizer
from trainer.errors import UserError

SETTINGS: dict[str, Any] = {"shard_tokens": 4000, "block_tokens": 500, "validation_fraction": 0.1, "progress": False}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "text.txt", made_up_documents(400))


def _build(text: Path, out: str, **settings: Any) -> Manifest:
    return build_shards(
        [text], tokenizer=small_tokenizer(), out=text.parent / out, **{"workers": 1, **SETTINGS, **settings}
    )


def test_the_bytes_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    text = write_lines(tmp_path / "text.txt", made_up_documents(30_000))
    assert text.stat().st_size > 5 << 19, "three chunks"
    settings = {"shard_tokens": 300_000, "block_tokens": 8_192}
    manifests = [_build(text, f"out{workers}", workers=workers, **settings) for workers in (1, 2, 3)]
    one, two, three = (folder_bytes(tmp_path / f"out{workers}") for workers in (1, 2, 3))
    assert one == two == three
    assert len(manifests[0].splits["train"].shards) == 3
    assert manifests[0].fingerprint == manifests[1].fingerprint


# Kills a build at every single fsync in turn, each in a process of its own, and finishes it in another.
_KILLER = """
import os, signal, sys
from pathlib import Path
import webdataset  # once, rather than in every fork
from small_corpus import folder_bytes
from data_pipeline.build import build_shards

text, tokenizer, out = map(Path, sys.argv[1:4])
settings = {settings}
fsync = os.fsync

def build(folder, kill_at=None):
    child = os.fork()
    if not child:
        calls = 0
        def counted(descriptor):
            nonlocal calls
            calls += 1
            if calls == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(descriptor)
        os.fsync = counted
        build_shards([text], tokenizer=tokenizer, out=folder, workers=1, **settings)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

assert build(out / "whole") == 0
whole = folder_bytes(out / "whole")
kills = 0
while True:
    folder = out / f"killed{{kills}}"
    status = build(folder, kill_at=kills + 1)
    if status == 0:
        break
    assert status == -signal.SIGKILL, status
    assert not (folder / "manifest.json").exists() or (folder / "manifest.json").read_bytes() == whole["manifest.json"]
    assert build(folder) == 0
    assert folder_bytes(folder) == whole, f"killed at fsync {{kills + 1}}"
    kills += 1
print(kills, len(whole))
"""


def test_a_build_killed_anywhere_and_started_again_gives_the_same_bytes(text: Path) -> None:
    script = textwrap.dedent(_KILLER).format(settings=SETTINGS)
    command = [sys.executable, "-c", script, str(text), str(small_tokenizer()), str(text.parent)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    assert done.returncode == 0, done.stderr
    kills, files = map(int, done.stdout.split())
    # A manifest, the tokenizer's two files, and several shards with their indexes; each is flushed, then its folder.
    assert files > 8
    assert kills >= 2 * files


def test_a_killed_build_with_workers_leaves_no_process_and_goes_on(tmp_path: Path) -> None:
    text = write_lines(tmp_path / "text.txt", made_up_documents(50_000))
    settings = {**SETTINGS, "shard_tokens": 50_000, "block_tokens": 5000}
    script = (
        "if __name__ == '__main__':\n"
        "    from data_pipeline.build import build_shards\n"
        f"    build_shards([{str(text)!r}], tokenizer={str(small_tokenizer())!r}, "
        f"out={str(tmp_path / 'killed')!r}, workers=3, **{settings!r})"
    )
    (tmp_path / "script.py").write_text(script)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py")],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        start_new_session=True,
    )
    while not (tmp_path / "killed/train-000002.index.npz").exists():
        assert process.poll() is None, "the build ended before it could be killed"
        time.sleep(0.001)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(workers) >= 2
    process.kill()
    process.wait()
    assert not (tmp_path / "killed/manifest.json").exists()
    _wait_for_end(workers)
    resumed = _build(text, "killed", **settings)
    assert resumed.fingerprint == _build(text, "whole", **settings).fingerprint
    assert folder_bytes(tmp_path / "killed") == folder_bytes(tmp_path / "whole")


def _wait_for_end(pids: list[str]) -> None:
    """Wait until the processes are gone; those that stay are ended, and fail the test."""
    deadline = time.monotonic() + 10.0
    alive = pids
    while alive and time.monotonic() < deadline:
        time.sleep(0.01)
        alive = [pid for pid in alive if _runs(pid)]
    for pid in alive:
        os.kill(int(pid), signal.SIGKILL)
    assert not alive, "workers outlived their build"


def _runs(pid: str) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def test_finished_shards_are_not_tokenized_again(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _build(text, "out", validation_fraction=0.0)
    folder = text.parent / "out"
    (folder / "manifest.json").unlink()
    shards = whole.splits["train"].shards
    (folder / shards[-1].name).unlink()
    encoded = []

    from data_pipeline.tokenizer import Tokenizer

    encode = Tokenizer.encode_batch
    monkeypatch.setattr(Tokenizer, "encode_batch", lambda self, texts: (encoded.extend(texts), encode(self, texts))[1])
    assert _build(text, "out", validation_fraction=0.0) == whole
    assert len(encoded) == shards[-1].documents


def test_another_tokenizer_in_the_same_place_is_the_one_used(text: Path) -> None:
    wanted = _build(text, "one").fingerprint
    for name, size in (("first", 200), ("second", 300)):
        train_tokenizer([text], out=text.parent / name, vocab_size=size, progress=False)
    build_shards([text], tokenizer=text.parent / "first", out=text.parent / "out", workers=1, **SETTINGS)
    shutil.rmtree(text.parent / "out")
    second = build_shards([text], tokenizer=text.parent / "second", out=text.parent / "out", workers=1, **SETTINGS)
    again = build_shards([text], tokenizer=text.parent / "second", out=text.parent / "new", workers=1, **SETTINGS)
    assert second.fingerprint == again.fingerprint != wanted


def test_a_finished_build_returns_at_once(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _build(text, "out")
    monkeypatch.setattr("data_pipeline.build._build", None)
    assert _build(text, "out") == whole
    assert _build(text, "out", workers=3, max_document_bytes=10_000) == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shard_tokens": 5000}, "shard_tokens was 4000, now 5000"),
        ({"block_tokens": 600}, "block_tokens was 500, now 600"),
        ({"validation_fraction": 0.2}, "validation_fraction was 0.1, now 0.2"),
    ],
)
def test_each_setting_changes_the_build_so_another_is_refused(text: Path, change: dict[str, Any], message: str) -> None:
    first = _build(text, "out")
    with pytest.raises(UserError, match=message):
        _build(text, "out", **change)
    assert _build(text, "other", **change).fingerprint != first.fingerprint


def test_equal_documents_fall_on_the_same_side(text: Path) -> None:
    write_lines(text, ["same ba de"] * 50 + made_up_documents(50))
    manifest = _build(text, "out", validation_fraction=0.4)
    train, validation = manifest.splits["train"].documents, manifest.splits["validation"].documents
    assert train + validation == 100
    assert max(train, validation) >= 50 + 10


def test_counts_of_documents_read_and_dropped_are_kept_also_by_a_resumed_build(text: Path) -> None:
    write_lines(text, ["\u200b", *made_up_documents(300), "", "\u200b"])
    manifest = _build(text, "out")
    assert (manifest.input_documents, manifest.dropped_documents) == (302, 2)
    (text.parent / "out/manifest.json").unlink()
    assert _build(text, "out") == manifest


def test_no_fraction_means_no_validation_shards(text: Path) -> None:
    manifest = _build(text, "out", validation_fraction=0.0)
    assert manifest.splits["validation"].shards == ()
    assert manifest.splits["train"].documents == 400


@pytest.mark.parametrize(
    ("lines", "settings", "message"),
    [
        (["ba"], {"validation_fraction": 0.99999}, "of 1 documents leaves none to train on"),
        (["ba", "de"], {"validation_fraction": 1e-9}, "of 2 documents holds none out"),
        (["  ", ""], {}, "holds no document"),
        (["\u200b"], {}, "none of the 1 documents holds a token"),
        (["ba"], {"validation_fraction": 1.0}, r"outside \[0, 1\)"),
        (["ba"], {"workers": 0}, "--workers 0 is too small"),
        (["ba"], {"shard_tokens": 0}, "--shard-tokens 0 is too small"),
        (["ba"], {"block_tokens": 0}, "--block-tokens 0 is too small"),
    ],
)
def test_what_cannot_be_built_is_refused(text: Path, lines: list[str], settings: dict[str, Any], message: str) -> None:
    write_lines(text, lines)
    with pytest.raises(UserError, match=message):
        _build(text, "out", **settings)
    assert not (text.parent / "out/manifest.json").exists()


def test_bad_text_in_mid_build_keeps_finished_shards(text: Path) -> None:
    text.write_bytes(text.read_bytes() + b"x" * 1_100_000 + b"\n\xff\n")
    with pytest.raises(UserError, match="invalid UTF-8"):
        _build(text, "out")
    names = [path.name for path in (text.parent / "out").iterdir()]
    assert "train-000000.tar" in names
    assert not [name for name in names if name.endswith(".tmp")]


class _Deadly(LineChunk):
    """A chunk that ends the process it is sent to."""

    def __reduce__(self) -> tuple[Any, tuple[int]]:
        return os._exit, (9,)


def _build_with(deadly: type[LineChunk]) -> None:
    job = EncodeJob(str(small_tokenizer()), TextOptions(), 0.0, {"train": (0, 0), "validation": (0, 0)})
    chunk = deadly("deadly.txt", is_json=False, payload=b"text\n", first_line=1, offset=0, input_position=5)
    # Without end, since this process encodes too until the first worker stands ready.
    with pytest.raises(UserError, match="a build worker was killed") as refused:
        list(encode_in_order(itertools.repeat((0, chunk)), job=job, workers=3))
    assert "\n" not in str(refused.value)


def test_a_killed_worker_fails_the_build_in_one_line() -> None:
    _build_with(_Deadly)


@pytest.mark.timeout(30)
@pytest.mark.skipif(sys.version_info >= (3, 12), reason="newer pools start no worker while they end the others")
def test_a_worker_that_starts_while_the_others_are_ended_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class DeadlyOnce(_Deadly):
        sent = 0

        def __reduce__(self) -> Any:
            DeadlyOnce.sent += 1
            return super().__reduce__() if DeadlyOnce.sent == 1 else (str, ())

    pools: list[Any] = []
    missed: dict[int, Any] = {}

    class Pool(ProcessPoolExecutor):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            pools.append(self)

    def end_all_but_a_new_one(manager: Any, cause: Any) -> None:
        pools[0]._spawn_process()
        missed.update([manager.processes.popitem()])
        end_workers(manager, cause)

    def tell_all_but_the_new_one(manager: Any) -> None:
        tell_workers(manager)
        manager.processes.update(missed)

    end_workers = _ExecutorManagerThread.terminate_broken
    tell_workers = _ExecutorManagerThread.shutdown_workers
    monkeypatch.setattr(build_pool, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(_ExecutorManagerThread, "terminate_broken", end_all_but_a_new_one)
    monkeypatch.setattr(_ExecutorManagerThread, "shutdown_workers", tell_all_but_the_new_one)
    _build_with(DeadlyOnce)
    assert len(missed) == 1


def test_a_full_disk_is_one_line_and_keeps_what_is_finished(text: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    disk = text.parent / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let a test mount a small file system")
    try:
        with pytest.raises(
            UserError, match=r"disk/out/train-00000\d.tar could not be written: No space left"
        ) as refused:
            _build(text, "disk/out", shard_tokens=1000)
        assert "finished shards are kept" in str(refused.value)
        assert not list((disk / "out").glob("*.tmp"))
        assert not (disk / "out/manifest.json").exists()
        finished = sorted(path.name for path in (disk / "out").glob("*.tar"))
        assert finished
        subprocess.run(["mount", "-o", "remount,size=9m", str(disk)], check=True)
        _build(text, "disk/out", shard_tokens=1000)
        _build(text, "whole", shard_tokens=1000)
        assert folder_bytes(disk / "out") == folder_bytes(text.parent / "whole")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
