"""The training benchmarks in a tiny form: what the peers are given, how they are asked, what is made of the rates."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_corpus import made_up_documents, write_lines

from tests.benchmarks.hf_trainer import CountingCollator, OneStepAtATime, read_rows
from tests.benchmarks.isolation import run_on_cores
from tests.benchmarks.material import Material, prepare
from tests.benchmarks.own_training import OwnTraining, bench_config, mean_tokens
from tests.benchmarks.peer_process import PeerProcess, check_python, write_peer
from tests.benchmarks.step import StepCase, measure_step, peer_rows
from tests.benchmarks.utilization import measure_utilization
from trainer.config import ModelConfig
from trainer.errors import UserError
from trainer.model.hf_config import to_hf_config

SHAPE = ModelConfig(hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32, max_positions=32)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    folder = tmp_path_factory.mktemp("material")
    text = write_lines(folder / "text.txt", made_up_documents(600))
    return prepare(str(text), folder=folder, documents=None, vocab_size=300, with_shards=True)


def _write(folder: Path, material: Material, *, rows_as_lists: bool = False) -> None:
    write_peer(
        folder,
        [np.array([2, 10, 11, 3]), np.array([2, 12, 3])],
        rows_as_lists=rows_as_lists,
        batch_rows=2,
        model=to_hf_config(SHAPE.model_copy(update={"vocab_size": 300}), suffix="ForMaskedLM", dtype="float32"),
        tokenizer=material.tokenizer,
        use_cpu=True,
    )


def test_a_peer_reads_the_rows_that_were_written_for_it(material: Material, tmp_path: Path) -> None:
    _write(tmp_path / "peer", material)
    lists = read_rows(tmp_path / "peer" / "rows.npz", as_lists=True)
    assert lists == [{"input_ids": [2, 10, 11, 3]}, {"input_ids": [2, 12, 3]}]
    tensors = read_rows(tmp_path / "peer" / "rows.npz", as_lists=False)
    assert torch.equal(tensors[1]["input_ids"], torch.tensor([2, 12, 3]))


def test_padded_rows_are_documents_and_grouped_ones_are_full(material: Material) -> None:
    padded = list(peer_rows(material, kind="padded", row_tokens=16))
    assert len(padded) == len(list(material.read_tokens()))
    assert max(map(len, padded)) <= 16
    assert all((row[0], row[-1]) == (2, 3) for row in padded)
    assert {len(row) for row in peer_rows(material, kind="grouped", row_tokens=16)} == {16}


def test_each_step_waits_for_its_request_and_is_answered_with_its_own_tokens() -> None:
    collate = CountingCollator(len)
    answers = io.StringIO()
    steps = OneStepAtATime(io.StringIO("step\nstep\n"), answers, tokens=collate.tokens)
    collate([{"input_ids": [1, 2, 3]}])
    for ahead in ([{"input_ids": [1]}, {"input_ids": [1]}], [{"input_ids": [1]}]):
        steps.on_step_begin()
        collate(ahead)
        steps.on_step_end()
    assert answers.getvalue() == "3\n2\n"
    with pytest.raises(EOFError):
        steps.on_step_begin()


def test_a_peer_that_fails_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the peer's process ended with exit code 1"):
        PeerProcess(Path(sys.executable), tmp_path)


def test_a_missing_environment_is_told_with_what_makes_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"python3 does not exist.*`make bench` makes"):
        check_python(tmp_path / "python3")


def _own_steps(material: Material) -> tuple[float, list[int]]:
    from trainer.runtime import started
    from trainer.topology import topology_from_env

    config = bench_config(material.shards, SHAPE, batch_rows=4, zero_stage=0)
    with started(topology_from_env({}), deterministic=False) as runtime, OwnTraining(config, runtime=runtime) as run:
        return mean_tokens(config), [run.step().tokens for _ in range(16)]


def test_the_tokens_of_an_update_are_those_of_the_runs_first_batches(material: Material) -> None:
    average, tokens = run_on_cores(1, _own_steps, material)
    assert average == sum(tokens) / 16
    assert 64 < average <= 128


def test_the_step_benchmark_measures_each_stage_against_each_peer(material: Material) -> None:
    pytest.importorskip("accelerate", reason="accelerate, which Hugging Face's Trainer needs, is not installed")
    case = StepCase("tiny", SHAPE, 4, {"padded": 3.0, "grouped": 2.2}, document_tokens=12, zero_stages=(0, 1))
    outcome = run_on_cores(
        1, measure_step, case, material, peer_python=Path(sys.executable), cores=1, rounds=1, seconds=0.01
    )
    assert len(outcome.rates) == 4
    assert all(len(rates) == 1 and rates[0] > 0 for rates in outcome.rates.values())
    assert [figure.target for figure in outcome.figures] == [3.0, 2.2, 3.0, 2.2]
    assert "accelerate" in outcome.remarks[0]


def test_the_utilization_is_the_share_of_the_matrix_products_rate(material: Material) -> None:
    outcome = run_on_cores(1, measure_utilization, material, cores=1, rounds=1, seconds=0.01, shape=SHAPE, batch_rows=4)
    (peak,), (without,), (with_dropout,) = outcome.rates.values()
    assert [figure.value for figure in outcome.figures] == [without / peak, with_dropout / peak]
    assert [figure.target for figure in outcome.figures] == [0.65, 0.55]
    assert 0.0 < outcome.figures[0].value < 1.0
