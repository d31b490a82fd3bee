from __future__ import annotations

from pathlib import Path

import pytest
from small_corpus import made_up_documents, write_lines

from data_pipeline.__main__ import main

LANES = ("--set", "data.lanes=24", "--set", "train.global_batch_size=24", "--micro-batch-size", "1")


def order(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[str]:
    assert main(["order", *map(str, arguments)]) == 0
    return capsys.readouterr().out.splitlines()


def mistake(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["order", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_it_prints_step_row_and_hash_the_same_for_every_number_of_ranks(
    tiny_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = order(capsys, tiny_recipe, "--steps", "1:3", *LANES)
    assert [line.split()[:2] for line in lines] == [[str(row // 24), str(row)] for row in range(24, 72)]
    assert len({line.split()[2] for line in lines}) == 48
    for world in (2, 3, 4, 6, 8):
        assert order(capsys, tiny_recipe, "--steps", "1:3", "--world-size", world, *LANES) == lines
    assert order(capsys, tiny_recipe, "--steps", "2:3", *LANES[:-1], "12") == lines[24:]
    assert order(capsys, tiny_recipe, "--steps", "1:3", *LANES, "--set", "seed=6") != lines


def test_a_recipe_of_raw_text_is_prepared_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = write_lines(tmp_path / "text.txt", made_up_documents(200))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"name: own\nruns_dir: {tmp_path}/runs\ndata: {{text: {text}, max_seq_len: 32}}\n"
        "tokenizer: {vocab_size: 150}\n"
        "train: {steps: 4, global_batch_size: 8, micro_batch_size: 2}\n"
    )
    assert len(order(capsys, recipe, "--steps", "0:2")) == 16
    assert (tmp_path / "runs" / "own" / "data").is_dir()


def test_what_does_not_fit_is_told_in_one_line(tiny_recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = mistake(capsys, tiny_recipe, "--steps", "0:1", "--world-size", 5)
    assert line == "error: dp_world_size=5 does not divide data.lanes=12; use dp_world_size=4 or 6\n"
    line = mistake(capsys, tiny_recipe, "--steps", "0:1", "--micro-batch-size", 5)
    assert "global_batch_size=12 is not divisible by micro_batch_size=5" in line
    line = mistake(capsys, tiny_recipe, "--steps", "0:9")
    assert line == "error: --steps ends at 9, and the run at step 4; ask for earlier ones\n"
    assert "nowhere does not exist" in mistake(capsys, tiny_recipe, "--steps", "0:1", "--set", "data.shards=nowhere")


@pytest.mark.parametrize("steps", ["3", "3:3", "4:2", "-1:2", "a:b", ":2", "1:"])
def test_steps_of_another_form_are_refused(steps: str, tiny_recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["order", str(tiny_recipe), f"--steps={steps}"])
    assert ended.value.code == 2
    assert "is not of the form A:B with A below B, as in 0:10" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--world-size", "--micro-batch-size"])
def test_numbers_below_one_are_refused(option: str, tiny_recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["order", str(tiny_recipe), "--steps", "0:1", option, "0"])
    assert ended.value.code == 2
    assert "0 is less than 1" in capsys.readouterr().err
