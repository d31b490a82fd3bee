from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trainer.errors import ReportedError, UserError, print_error, refusals_of, run_command


def raising(error: BaseException):  # type: ignore[no-untyped-def]
    def command() -> int:
        raise error

    return command


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)


def test_a_commands_own_exit_code_is_passed_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(lambda: 1) == 1
    assert capsys.readouterr() == ("", "")


def test_a_users_mistake_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(raising(UserError("first\n  second"))) == 2
    assert capsys.readouterr() == ("", "error: first second\n")


FULL = "No space left on device"
ROOM = "; make room there, or name a place on another disk\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, FULL, "runs/a"), f"error: {FULL}: runs/a{ROOM}"),
        (OSError(28, FULL), f"error: {FULL}: (while reading or writing){ROOM}"),
        (OSError(28, FULL, "from", None, "to"), f"error: {FULL}: to{ROOM}"),
        (OSError(13, "Permission denied", "runs/a"), "error: Permission denied: runs/a\n"),
        (OSError(None, "the disk is full", "runs/a"), "error: the disk is full: runs/a\n"),
    ],
)
def test_what_the_operating_system_refuses_is_one_line(
    error: OSError, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(raising(error)) == 2
    assert capsys.readouterr().err == line


def test_only_the_first_rank_of_a_host_prints_what_every_rank_meets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank, line in (("0", "error: wrong\n"), ("1", "")):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert run_command(raising(UserError("wrong"))) == 2
        assert capsys.readouterr().err == line


@pytest.mark.parametrize("exit_code", [1, 2])
def test_a_failure_that_was_printed_already_ends_quietly(exit_code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(raising(ReportedError(exit_code))) == exit_code
    assert capsys.readouterr() == ("", "")


def test_an_interrupt_from_the_keyboard_is_no_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError("neither a number nor a file")])
def test_a_programmers_mistake_keeps_its_traceback(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(type(error)):
        run_command(raising(error))
    assert print_error(error) == 1
    assert type(error).__name__ in capsys.readouterr().err


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trainer", "show-config", "demo"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as job:
        assert job.stdout
        assert job.stderr
        job.stdout.close()
        assert job.stderr.read() == b""
    assert job.returncode == 0


def test_a_log_on_a_full_disk_takes_no_line_and_the_exit_code_stays() -> None:
    body = "from trainer.errors import UserError, print_error; raise SystemExit(print_error(UserError('full')))"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", body], stderr=full, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 2


@pytest.mark.parametrize(
    ("refusal", "named"),
    [
        (OSError(28, FULL), "out"),
        (OSError(28, FULL, ".out.tmp/weights"), "out"),
        (OSError(28, FULL, "source", None, ".out.tmp/vocab.txt"), "out"),
        (OSError(2, "No such file or directory", "source"), "source"),
    ],
)
def test_a_refused_write_names_what_the_user_asked_for(refusal: OSError, named: str) -> None:
    with pytest.raises(OSError, match=refusal.strerror) as told, refusals_of(Path("out"), written_as=Path(".out.tmp")):
        raise refusal
    assert (told.value.errno, told.value.filename) == (refusal.errno, named)
