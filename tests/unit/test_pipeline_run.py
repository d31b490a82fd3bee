"""Runs in pipeline stages, one process a stage: the curve of a run without, checkpoints open to every layout."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from command_line import Commands

from trainer.checkpoint_files import CheckpointReader
from trainer.metrics import read_records

LAYERS = ("model.num_layers=3", "train.steps=6", "evaluation.every_steps=3")
QUIET = ("model.hidden_dropout=0.0", "model.attention_dropout=0.0")
STAGES = ("parallel.num_stages=2", "parallel.activation_checkpointing=true")


class Runs:
    """Starts runs of the tiny recipe in folders of their own."""

    def __init__(self, commands: Commands, recipe: Path, root: Path) -> None:
        self._commands, self._recipe, self._root = commands, recipe, root
        self._plain: dict[str, Path] = {}

    def go_on(self, folder: Path, *settings: str, ranks: int = 1) -> Path:
        given = [part for setting in (*LAYERS, *settings) for part in ("--set", setting)]
        for done in self._commands.run_ranks("pretrain", self._recipe, *given, cwd=folder, ranks=ranks):
            assert (done.code, done.err) == (0, ""), done
        return folder / "runs" / "tiny"

    def new(self, name: str, *settings: str, ranks: int = 1) -> Path:
        folder = self._root / name
        folder.mkdir()
        return self.go_on(folder, *settings, ranks=ranks)

    def cut(self, run_dir: Path, name: str) -> Path:
        """A folder with a copy of a run as it was after step 4."""
        folder = self._root / name
        shutil.copytree(run_dir, folder / "runs" / "tiny")
        shutil.rmtree(folder / "runs" / "tiny" / "checkpoints" / "step-00000006")
        return folder


@pytest.fixture(scope="module")
def runs(commands: Commands, tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(commands, tiny_recipe, tmp_path_factory.mktemp("stages"))


@pytest.fixture(scope="module")
def plain(runs: Runs) -> Path:
    return runs.new("plain", *QUIET)


@pytest.fixture(scope="module")
def staged(runs: Runs) -> Path:
    return runs.new("staged", *QUIET, *STAGES, ranks=2)


def figures(run_dir: Path, key: str) -> dict[int, float]:
    return {record["step"]: record[key] for record in read_records(run_dir / "metrics.jsonl") if key in record}


def assert_alike(found: Path, expected: Path, *, key: str = "train/loss", within: float = 1e-5) -> None:
    assert figures(expected, key)
    assert figures(found, key) == pytest.approx(figures(expected, key), rel=within, abs=0)


@pytest.mark.parametrize(
    ("key", "within"),
    [
        ("train/loss", 1e-5),
        ("train/grad_norm", 1e-4),
        ("train/tokens", 0),
        ("validation/loss", 1e-5),
        ("validation/accuracy", 1e-12),
        ("data/padding_share", 1e-9),
    ],
)
def test_its_figures_are_those_of_the_plain_run(plain: Path, staged: Path, key: str, within: float) -> None:
    assert_alike(staged, plain, key=key, within=within)


def test_its_weights_are_the_plain_runs_and_each_element_is_saved_once(plain: Path, staged: Path) -> None:
    one, other = (CheckpointReader(folder / "checkpoints" / "step-00000006") for folder in (plain, staged))
    expected, found = one.weights(), other.weights()
    assert list(found) == list(expected)
    assert all(found[name].allclose(expected[name], rtol=1e-3, atol=1e-5) for name in expected)
    sizes = [sum(path.stat().st_size for path in reader.folder.glob("partition-*")) for reader in (one, other)]
    assert sizes[1] < 1.05 * sizes[0]


def test_two_replicas_of_two_stages_without_zero_give_the_same_curve(runs: Runs, plain: Path) -> None:
    found = runs.new("replicas", *QUIET, *STAGES, "engine.ds_config=zero0", ranks=4)
    assert_alike(found, plain)
    assert_alike(found, plain, key="train/grad_norm", within=1e-4)


def test_bf16_stages_give_the_bf16_curve(runs: Runs) -> None:
    expected = runs.new("bf16", *QUIET, "engine.precision=bf16")
    found = runs.new("bf16-staged", *QUIET, *STAGES, "engine.precision=bf16", ranks=2)
    assert_alike(found, expected, within=5e-4)


def test_pairs_are_trained_in_stages_too(runs: Runs, sentence_shards: Path) -> None:
    pairs = (*QUIET, f"data.shards={sentence_shards}", "objective.pairs=sop", "objective.pair_weight=0.5")
    expected = runs.new("pairs", *pairs)
    found = runs.new("pairs-staged", *pairs, *STAGES, ranks=2)
    for key in ("train/loss_mlm", "train/loss_pairs", "validation/loss_pairs"):
        assert_alike(found, expected, key=key)


def test_a_checkpoint_of_stages_goes_on_in_one_process(runs: Runs, plain: Path, staged: Path) -> None:
    found = runs.go_on(runs.cut(staged, "staged-plain"), *QUIET, "engine.ds_config=zero0")
    assert_alike(found, plain)


def test_a_checkpoint_of_one_process_goes_on_in_three_stages(runs: Runs, plain: Path) -> None:
    found = runs.go_on(runs.cut(plain, "plain-staged"), *QUIET, "parallel.num_stages=3", ranks=3)
    assert_alike(found, plain)


def test_with_dropout_it_goes_on_bit_for_bit_in_its_own_layout(runs: Runs) -> None:
    whole = runs.new("dropout", *STAGES, ranks=2)
    found = runs.go_on(runs.cut(whole, "dropout-cut"), *STAGES, ranks=2)
    assert figures(found, "train/loss") == figures(whole, "train/loss")
    assert figures(found, "validation/loss") == figures(whole, "validation/loss")


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("parallel.num_stages=2", "error: num_stages=2 does not divide world_size=1; use num_stages=1\n"),
        (
            "parallel.num_stages=4",
            "tiny.yaml: parallel.num_stages=4 leaves a stage empty: model.num_layers=1, the embeddings and the head "
            "fill 3 at most\n",
        ),
    ],
)
def test_stages_that_cannot_be_are_refused(
    commands: Commands, tiny_recipe: Path, tmp_path: Path, setting: str, line: str
) -> None:
    assert commands.mistake("pretrain", tiny_recipe, "--set", setting, cwd=tmp_path).endswith(line)
    assert not list(tmp_path.iterdir())


def test_stages_with_zero_2_are_refused_before_data_is_read(
    commands: Commands, tiny_recipe: Path, tmp_path: Path
) -> None:
    settings = ("parallel.num_stages=2", "engine.ds_config=zero2", "data.shards=nowhere")
    given = [part for setting in settings for part in ("--set", setting)]
    ended = commands.run_ranks("pretrain", tiny_recipe, *given, cwd=tmp_path, ranks=2)
    assert [done.code for done in ended] == [2, 2]
    said = "".join(done.err for done in ended)
    assert said.count("\n") == 1
    assert "zero_optimization.stage=2 cannot be joined with parallel.num_stages=2" in said
