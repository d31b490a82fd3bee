"""What is wrong with shards, text and disks, as a user of `python -m trainer` meets it."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from command_line import Commands, one_line_of
from small_corpus import made_up_documents, write_lines

from data_pipeline.build import build_shards
from data_pipeline.tokenizer import train_tokenizer

TEXT_RECIPE = """\
name: own
data: {{text: {text}, max_seq_len: 32, validation_fraction: 0.1}}
tokenizer: {{vocab_size: {vocab_size}}}
model: {{hidden_size: 16, num_layers: 1, num_heads: 2, intermediate_size: 32, max_positions: 32}}
train: {{steps: 2, global_batch_size: 4, micro_batch_size: 2}}
engine: {{ds_config: zero0, precision: fp32}}
evaluation: {{every_steps: 2, max_rows: 4}}
export: false
"""


def write_recipe(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def cut_tar(folder: Path) -> None:
    tar = folder / "train-000000.tar"
    tar.write_bytes(tar.read_bytes()[:2000])


def flip_byte(folder: Path) -> None:
    tar = folder / "train-000001.tar"
    content = bytearray(tar.read_bytes())
    content[2400] ^= 1
    tar.write_bytes(content)


def remove_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def take_other_tokenizer(folder: Path) -> None:
    text = write_lines(folder.parent / "other.txt", made_up_documents(300, seed=9))
    shutil.rmtree(folder / "tokenizer")
    train_tokenizer([text], out=folder / "tokenizer", vocab_size=200, progress=False)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "the shard folder {folder} does not exist; make it by `python -m data_pipeline build`"),
        (empty, "{folder} holds no finished shards: manifest.json is missing;"),
        (remove_manifest, "{folder} holds no finished shards: manifest.json is missing;"),
        (cut_tar, "{folder}/train-000000.tar: size in bytes is 2000, where "),
        (flip_byte, "{folder}/train-000001.tar: the crc32 of 00000"),
        (take_other_tokenizer, "{folder}/tokenizer is not the tokenizer that {folder} was built with"),
    ],
    ids=["missing", "empty", "no manifest", "cut tar", "flipped byte", "another tokenizer"],
)
def test_damaged_shards_are_named(
    commands: Commands, tiny_recipe: Path, shards: Path, tmp_path: Path, damage: object, message: str
) -> None:
    folder = shutil.copytree(shards, tmp_path / "damaged")
    damage(folder)  # type: ignore[operator]
    line = commands.mistake("pretrain", tiny_recipe, "--set", f"data.shards={folder}", cwd=tmp_path)
    assert line.startswith(f"error: {message.format(folder=folder)}")
    assert not (tmp_path / "runs/tiny/checkpoints").exists()


def test_a_damaged_block_found_by_one_rank_is_told_once_and_ends_all_ranks(
    commands: Commands, tiny_recipe: Path, shards: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(shards, tmp_path / "damaged")
    flip_byte(folder)
    before = time.monotonic()
    settings = ["--set", f"data.shards={folder}", "--set", "evaluation.every_steps=40"]
    ended = commands.run_ranks("pretrain", tiny_recipe, *settings, cwd=tmp_path, ranks=2)
    assert time.monotonic() - before < 60
    assert [done.code for done in ended] == [2, 2]
    told = "".join(done.err for done in ended)
    assert told.startswith(f"error: {folder}/train-000001.tar: the crc32 of 00000")
    assert told.count("\n") == 1


def test_no_held_out_documents_but_evaluation_is_refused(
    commands: Commands, tiny_recipe: Path, shards: Path, tmp_path: Path
) -> None:
    text = write_lines(tmp_path / "text.txt", made_up_documents(50))
    tokenizer, out = shards / "tokenizer", tmp_path / "all"
    build_shards([text], tokenizer=tokenizer, out=out, workers=1, validation_fraction=0.0, progress=False)
    line = commands.mistake("pretrain", tiny_recipe, "--set", f"data.shards={out}", cwd=tmp_path)
    assert line.startswith(f"error: {out} holds no validation documents; build with --validation-fraction 0.01")
    assert "or set evaluation: null" in line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("missing.txt", "missing.txt does not exist; name a file, a folder or a glob"),
        ("hollow", "the folder hollow holds no text; it needs files ending in .txt"),
        ("empty.txt", "empty.txt is empty; remove it or fill it"),
        (
            "package:no_such_package/x",
            "data.text: package:no_such_package/x names the Python package 'no_such_package', which is not installed;",
        ),
    ],
)
def test_text_that_cannot_be_read_is_named(commands: Commands, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "hollow").mkdir()
    (tmp_path / "empty.txt").touch()
    write_recipe(tmp_path, TEXT_RECIPE.format(text=f'["{text}"]', vocab_size=100))
    assert commands.mistake("pretrain", "recipe.yaml", cwd=tmp_path).startswith(f"error: {message}")


def test_what_rank_0_meets_while_it_prepares_the_data_ends_the_waiting_ranks_at_once(
    commands: Commands, tmp_path: Path
) -> None:
    write_lines(tmp_path / "text.txt", made_up_documents(50))
    write_recipe(tmp_path, TEXT_RECIPE.format(text="[text.txt]", vocab_size=30000))
    before = time.monotonic()
    ended = commands.run_ranks("pretrain", "recipe.yaml", cwd=tmp_path, ranks=2)
    assert time.monotonic() - before < 30
    line = one_line_of(ended[0])
    assert line.startswith(
        "error: tokenizer.vocab_size=30000 is larger than this text allows; the largest that fits is "
    )
    assert (ended[1].code, ended[1].out, ended[1].err) == (2, "", "")
    assert not list(tmp_path.rglob("manifest.json"))


def test_two_ranks_train_on_raw_text_in_one_command(commands: Commands, tmp_path: Path) -> None:
    write_lines(tmp_path / "text.txt", made_up_documents(200))
    write_recipe(tmp_path, TEXT_RECIPE.format(text="[text.txt]", vocab_size=150))
    ended = commands.run_ranks("pretrain", "recipe.yaml", cwd=tmp_path, ranks=2)
    assert [(done.code, done.err) for done in ended] == [(0, ""), (0, "")]
    assert "training a tokenizer of 150 pieces on 1 input path(s)" in ended[0].out
    assert (tmp_path / "runs/own/checkpoints/latest").read_text() == "step-00000002\n"
    again = commands.run("pretrain", "recipe.yaml", cwd=tmp_path)
    assert "training a tokenizer" not in again.out


@contextmanager
def small_disk(folder: Path, *, kib: int) -> Iterator[Path]:
    """A file system of so many KiB of its own; the test skips where none may be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system can only be mounted by root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_during_a_checkpoint_leaves_the_earlier_one(
    commands: Commands, tiny_recipe: Path, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", kib=1024) as disk:
        settings = ["--set", f"runs_dir={disk}", "--set", "checkpoint.keep_last=9", "--set", "train.steps=40"]
        # Or figures would meet the end of the disk first.
        settings += ["--set", "train.log_every_steps=40", "--set", "evaluation.every_steps=40"]
        line = commands.mistake("pretrain", tiny_recipe, *settings, cwd=tmp_path)
        assert "could not be written (rank 0): " in line
        assert "No space left on device" in line
        assert "earlier checkpoints are untouched: free space or mend the folder, and start again to resume" in line
        checkpoints = disk / "tiny/checkpoints"
        assert not list(checkpoints.glob(".saving-*"))
        last = (checkpoints / "latest").read_text().strip()
        assert last == max(path.name for path in checkpoints.glob("step-*"))
        assert commands.run("evaluate", disk / "tiny", "--checkpoint", last, cwd=tmp_path).code == 0


def test_a_run_folder_that_may_not_be_written_is_named(commands: Commands, tiny_recipe: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", kib=64) as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        line = commands.mistake("pretrain", tiny_recipe, "--set", f"runs_dir={disk}", cwd=tmp_path)
        assert line == f"error: Read-only file system: {disk}/tiny\n"


def test_shards_on_a_read_only_file_system_are_trained_on(
    commands: Commands, tiny_recipe: Path, shards: Path, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", kib=2048) as disk:
        folder = shutil.copytree(shards, disk / "shards", ignore=shutil.ignore_patterns("rows-*"))
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        settings = ["--set", f"data.shards={folder}", "--set", "train.steps=2"]
        done = commands.run("pretrain", tiny_recipe, *settings, cwd=tmp_path)
        assert (done.code, done.err) == (0, "")
