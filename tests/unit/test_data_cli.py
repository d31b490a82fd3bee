"""The command line as a user meets it: real processes, exit codes, one line for each mistake."""

from __future__ import annotations

import gzip
import io
import os
import resource
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from small_corpus import folder_bytes, made_up_documents, small_tokenizer, write_lines

ROOT = Path(__file__).resolve().parents[2]


def _run(*arguments: object, cwd: Path, largest_file: int | None = None) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    return subprocess.run(
        [sys.executable, "-m", "data_pipeline", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=limit,
        check=False,
    )


def _mistake(*arguments: object, cwd: Path, largest_file: int | None = None) -> str:
    """The one line of a command that a user's mistake ends."""
    done = _run(*arguments, cwd=cwd, largest_file=largest_file)
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_lines(folder / "good.txt", made_up_documents(600))
    write_lines(folder / "large.txt", made_up_documents(8000))
    (folder / "empty.txt").touch()
    (folder / "hollow").mkdir()
    (folder / "latin1.txt").write_bytes("one\ncafé\n".encode("latin-1"))
    (folder / "bad.jsonl").write_text('{"text": "a"}\n{"text": }\n')
    (folder / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 1000)[:-9])
    with tarfile.open(folder / "cut.tar", "w") as archive:
        member = tarfile.TarInfo("1.txt")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"text"))
    (folder / "cut.tar").write_bytes((folder / "cut.tar").read_bytes()[:1024])
    with (folder / "long.txt").open("wb") as file:
        file.write(b"short\n")
        for _ in range(100):
            file.write(b"x" * 1_000_000)
    shutil.copytree(small_tokenizer(), folder / "tok")
    return folder


def test_from_text_to_verified_shards(corpus: Path, tmp_path: Path) -> None:
    shutil.copy(corpus / "good.txt", tmp_path)
    done = _run("tokenizer", "--input", "good.txt", "--out", "tok", "--vocab-size", 150, "--seed", 1, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("tok: 150 pieces, sha256 ")

    build = (
        "build",
        "--input",
        "*.txt",
        "--tokenizer",
        "tok",
        "--out",
        "shards",
        "--workers",
        2,
        "--shard-tokens",
        9000,
    )
    done = _run(*build, "--validation-fraction", 0.1, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].startswith("train: ")
    assert "shards: built, fingerprint " in done.stdout

    content = folder_bytes(tmp_path / "shards")
    done = _run(*build, "--validation-fraction", 0.1, cwd=tmp_path)
    assert "shards: already built, fingerprint " in done.stdout
    assert folder_bytes(tmp_path / "shards") == content
    assert "was 0.1, now 0.01" in _mistake(*build, cwd=tmp_path)

    done = _run("verify", "shards", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("shards: all well; ")
    done = _run("inspect", "shards", "--examples", 1, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "600 read" in done.stdout

    tar = tmp_path / "shards/train-000000.tar"
    damaged = bytearray(tar.read_bytes())
    with tarfile.open(tar) as members:
        damaged[members.getmember("000000.tokens.npy").offset_data + 200] ^= 1
    tar.write_bytes(damaged)
    done = _run("verify", "shards", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    assert "shards/train-000000.tar: the crc32 of 000000.tokens.npy is " in done.stdout


@pytest.mark.parametrize("command", ["tokenizer", "build"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("missing.txt", "error: missing.txt does not exist;"),
        ("*.csv", "error: the glob *.csv matches no file;"),
        ("empty.txt", "error: empty.txt is empty;"),
        ("hollow", "error: the folder hollow holds no text;"),
        ("latin1.txt", "error: latin1.txt:2: invalid UTF-8 at byte 7 of the text"),
        ("bad.jsonl", "error: bad.jsonl:2: JSON does not parse"),
        ("cut.jsonl.gz", "error: cut.jsonl.gz is cut short"),
        ("cut.tar", "error: cut.tar is not a whole tar"),
        ("long.txt", "error: long.txt:2: one document of 100,000,000 bytes is over --max-document-bytes 67,108,864"),
    ],
)
def test_bad_input_ends_in_one_line(corpus: Path, tmp_path: Path, command: str, given: str, message: str) -> None:
    settings = {
        "tokenizer": ("--vocab-size", 100, "--out", tmp_path / "out"),
        "build": ("--tokenizer", "tok", "--out", tmp_path / "out", "--workers", 1),
    }[command]
    assert _mistake(command, "--input", given, *settings, cwd=corpus).startswith(message)
    assert not list(tmp_path.rglob("*.tmp"))
    assert not (tmp_path / "out/manifest.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("tokenizer --input good.txt --out {out} --vocab-size 90000", "the largest that fits is "),
        ("build --input good.txt --tokenizer nowhere --out {out}", "the tokenizer folder nowhere does not exist"),
        ("build --input good.txt --tokenizer hollow --out {out}", "hollow is no finished tokenizer"),
        ("build --input good.txt --tokenizer tok --out .", "holds other files"),
        ("build --input good.txt --tokenizer tok --out good.txt", "good.txt could not be written: File exists"),
        ("build --input good.txt good.txt --tokenizer tok --out {out}", "is named twice"),
        ("verify nowhere", "the shard folder nowhere does not exist"),
        ("inspect hollow", "hollow holds no finished shards"),
    ],
)
def test_other_mistakes_end_in_one_line(corpus: Path, tmp_path: Path, arguments: str, message: str) -> None:
    given = [argument.format(out=tmp_path / "out") for argument in arguments.split()]
    assert message in _mistake(*given, cwd=corpus)


def test_a_file_that_may_not_grow_is_named_and_nothing_half_written_stays(corpus: Path, tmp_path: Path) -> None:
    settings = ("--tokenizer", "tok", "--out", tmp_path / "out", "--workers", 1)
    refusal = _mistake("build", "--input", "large.txt", *settings, cwd=corpus, largest_file=200_000)
    assert f"{tmp_path}/out/tokenizer/spiece.model could not be written: File too large" in refusal
    refusal = _mistake("build", "--input", "large.txt", *settings, cwd=corpus, largest_file=250_000)
    assert f"{tmp_path}/out/train-000000.tar could not be written: File too large" in refusal
    assert "finished shards are kept" in refusal
    assert not list(tmp_path.rglob("*.tmp"))


def test_help_names_every_command_and_option() -> None:
    for arguments, expected in (
        (["--help"], ("tokenizer", "build", "verify", "inspect")),
        (["build", "--help"], ("--workers", "--shard-tokens", "--validation-fraction", "--text-field", "--document")),
    ):
        done = _run(*arguments, cwd=ROOT)
        assert done.returncode == 0
        assert all(name in done.stdout for name in expected)
