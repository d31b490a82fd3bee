"""GLUE and CLUE on tiny files of their published forms: what is read, dropped, scored and answered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import Commands
from small_task import sentiment_lines, write_recipe, write_sentiment

from trainer.errors import UserError
from trainer.recipe import load_finetune_recipe
from trainer.suites import clue, glue
from trainer.suites.run import at_hand, prepare, task_config
from trainer.suites.scores import markdown, published
from trainer.suites.suite_task import SuiteTask, convert

pytest.importorskip("sklearn")


def task_of(suite: Any, name: str) -> SuiteTask:
    found: SuiteTask = next(task for task in suite.TASKS if task.name == name)
    return found


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def converted(task: SuiteTask, path: Path, *, labelled: bool) -> tuple[list[dict[str, Any]], int]:
    out = path.with_suffix(".out")
    _, left_out = convert(task, path, out, labelled=labelled)
    return [json.loads(line) for line in out.read_text().splitlines()], left_out


LABELLED = {
    "CoLA": (["gj04\t1\t\tFine words."], {"text": "Fine words.", "label": "1"}),
    "SST-2": (["sentence\tlabel", 'a "fine film\t1'], {"text": 'a "fine film', "label": "1"}),
    "MRPC": (
        ["\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", "1\t70\t71\tOne.\tTwo."],
        {"text": "One.", "pair": "Two.", "label": "1"},
    ),
    "STS-B": (
        ["index\tgenre\tsentence1\tsentence2\tscore", "0\tx\tOne.\tTwo.\t4.750"],
        {"text": "One.", "pair": "Two.", "label": "4.750"},
    ),
    "QQP": (
        ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "9\t1\t2\tWhy?\tHow?\t0"],
        {"text": "Why?", "pair": "How?", "label": "0"},
    ),
    "MNLI": (
        ["index\tsentence1\tsentence2\tlabel1\tgold_label", "0\tOne.\tTwo.\tneutral\tentailment"],
        {"text": "One.", "pair": "Two.", "label": "entailment"},
    ),
    "QNLI": (
        ["index\tquestion\tsentence\tlabel", "0\tWho?\tHe.\tnot_entailment"],
        {"text": "Who?", "pair": "He.", "label": "not_entailment"},
    ),
    "RTE": (
        ["index\tsentence1\tsentence2\tlabel", "0\tOne.\tTwo.\tentailment"],
        {"text": "One.", "pair": "Two.", "label": "entailment"},
    ),
    "WNLI": (
        ["index\tsentence1\tsentence2\tlabel", "0\tOne.\tTwo.\t0"],
        {"text": "One.", "pair": "Two.", "label": "0"},
    ),
}


@pytest.mark.parametrize("name", LABELLED)
def test_each_file_of_glue_is_read_in_its_own_form(name: str, tmp_path: Path) -> None:
    lines, expected = LABELLED[name]
    assert converted(task_of(glue, name), write(tmp_path / "train.tsv", *lines), labelled=True) == ([expected], 0)


def test_every_task_of_glue_has_a_case() -> None:
    assert {task.name for task in glue.TASKS} == set(LABELLED)


@pytest.mark.parametrize(
    ("name", "line", "expected"),
    [
        ("afqmc", {"sentence1": "甲", "sentence2": "乙", "label": "0"}, {"text": "甲", "pair": "乙", "label": "0"}),
        ("tnews", {"label": 102, "label_desc": "x", "sentence": "甲"}, {"text": "甲", "label": "102"}),
        ("iflytek", {"label": "11", "sentence": "甲"}, {"text": "甲", "label": "11"}),
        (
            "csl",
            {"id": 1, "abst": "甲", "keyword": ["乙", "丙"], "label": "1"},
            {"text": "乙 丙", "pair": "甲", "label": "1"},
        ),
        (
            "cluewsc2020",
            {
                "target": {"span1_text": "杰克", "span1_index": 0, "span2_text": "他", "span2_index": 3},
                "text": "杰克说他走",
                "label": "true",
            },
            {"text": "杰克说_他_走", "pair": "杰克", "label": "true"},
        ),
    ],
)
def test_each_file_of_clue_is_read_in_its_own_form(
    name: str, line: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    path = write(tmp_path / "train.json", json.dumps(line, ensure_ascii=False))
    assert converted(task_of(clue, name), path, labelled=True) == ([expected], 0)


def test_lines_without_an_agreed_label_or_of_another_width_are_left_out_and_counted(tmp_path: Path) -> None:
    lines = [json.dumps({"sentence1": "甲", "sentence2": "乙", "label": label}) for label in ("-", "neutral")]
    found, left_out = converted(task_of(clue, "cmnli"), write(tmp_path / "c.json", *lines), labelled=True)
    assert ([line["label"] for line in found], left_out) == (["neutral"], 1)
    rows = ["sentence\tlabel", "fine\t1", "fine", "\t0", "dull\t0"]
    found, left_out = converted(task_of(glue, "SST-2"), write(tmp_path / "g.tsv", *rows), labelled=True)
    assert ([line["text"] for line in found], left_out) == (["fine", "dull"], 2)


def test_a_bad_line_of_a_test_file_is_refused_since_it_needs_an_answer(tmp_path: Path) -> None:
    path = write(tmp_path / "test.tsv", "index\tsentence", "0\tfine", "1")
    with pytest.raises(UserError, match=r"test\.tsv:3: not of the file's form, and each line of a test file needs an"):
        converted(task_of(glue, "SST-2"), path, labelled=False)


def test_another_files_columns_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "train.tsv", "text\tlabel", "fine\t1")
    with pytest.raises(UserError, match=r"train\.tsv:2: no column 'sentence', but 'text', 'label'; is this the publ"):
        converted(task_of(glue, "SST-2"), path, labelled=True)
    path = write(tmp_path / "w.json", json.dumps({"text": "x", "target": {}, "label": "true"}))
    with pytest.raises(UserError, match=r"w\.json:1: target must hold span1_text, span2_text and span2_index"):
        converted(task_of(clue, "cluewsc2020"), path, labelled=True)


def test_answers_have_the_published_form() -> None:
    assert glue.answers(["0", "1"], ["entailment", "0"]) == "index\tprediction\n0\tentailment\n1\t0\n"
    assert clue.answers([0, 1], ["102", "true"]) == '{"id": 0, "label": "102"}\n{"id": 1, "label": "true"}\n'
    assert (glue.answer_file("MNLI-mm"), clue.answer_file("afqmc")) == ("MNLI-mm.tsv", "afqmc_predict.json")


def test_scores_are_the_published_ones() -> None:
    labels = [{"label": label} for label in ("1", "1", "0", "0")]
    scores = published(task_of(glue, "MRPC"), ["1", "0", "0", "1"], labels)
    assert scores == pytest.approx({"f1": 0.5, "accuracy": 0.5})
    assert published(task_of(glue, "CoLA"), ["1", "1", "0", "0"], labels) == pytest.approx({"matthews": 1.0})
    numbers = [{"value": value} for value in (1.0, 2.0, 4.0)]
    assert published(task_of(glue, "STS-B"), [1.0, 3.0, 7.0], numbers) == pytest.approx(
        {"pearson": 1.0, "spearman": 1.0}
    )


def test_the_table_averages_over_tasks_and_names_what_is_absent() -> None:
    rows = [
        {"task": "MRPC", "seed": 3, "dev": {"dev.tsv": {"f1": 0.9, "accuracy": 0.8}}},
        {"task": "RTE", "seed": 3, "dev": {"dev.tsv": {"accuracy": 0.65}}},
    ]
    assert markdown(rows, absent=["WNLI"]).splitlines() == [
        "| task | dev file | scores × 100 | seed |",
        "|---|---|---|---|",
        "| MRPC | dev.tsv | f1 90.00, accuracy 80.00 | 3 |",
        "| RTE | dev.tsv | accuracy 65.00 | 3 |",
        "| average of 2 tasks | | 75.00 | |",
        "",
        "Not at hand: WNLI.",
    ]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SST-2, STS-B and MNLI, a few lines each."""
    folder = tmp_path_factory.mktemp("glue")
    for number, part in enumerate(("train", "dev", "test")):
        rows = [line.split("\t") for line in sentiment_lines(16, seed=number)]
        labelled = part != "test"
        lines = [
            f"{text}\t{int(label == 'pos')}" if labelled else f"{n}\t{text}" for n, (label, text) in enumerate(rows)
        ]
        write(folder / f"SST-2/{part}.tsv", "sentence\tlabel" if labelled else "index\tsentence", *lines)
        lines = [f"{n}\t{text}\t{text}" + (f"\t{n % 6}.000" if labelled else "") for n, (_, text) in enumerate(rows)]
        write(folder / f"STS-B/{part}.tsv", "index\tsentence1\tsentence2" + ("\tscore" if labelled else ""), *lines)
        for side in ("",) if part == "train" else ("_matched", "_mismatched"):
            end = "\tneutral" if labelled else ""
            names = "index\tsentence1\tsentence2" + ("\tgold_label" if labelled else "")
            more = [] if not labelled else ["99\ta film\tthe film\tentailment"]
            lines = [f"{n}\t{text}\t{text}{end}" for n, (_, text) in enumerate(rows)]
            write(folder / f"MNLI/{part}{side}.tsv", names, *lines, *more)
    return folder


def test_a_suite_trains_scores_and_answers_what_is_at_hand_and_goes_on(
    commands: Commands, files: Path, tmp_path: Path
) -> None:
    write_sentiment(tmp_path)
    recipe = write_recipe(tmp_path, pieces=36)
    short = ["--set", "train.epochs=1", "--set", "data.test=null"]
    wanted = ["--files", files, "--recipe", recipe, "--tasks", "STS-B,MNLI"]
    done = commands.run("suite", "glue", *wanted, *short, cwd=tmp_path)
    assert (done.code, done.err) == (0, ""), done
    folder = tmp_path / "runs/tiny-glue"
    table = (folder / "glue.md").read_text()
    assert table in done.out
    assert [line.split(" | ")[0] for line in table.splitlines()[2:6]] == [
        "| STS-B",
        "| MNLI",
        "| MNLI",
        "| average of 2 tasks",
    ]
    assert "Not at hand: CoLA, MRPC, QQP, QNLI, RTE, WNLI." in table
    answers = {path.name: path.read_text().splitlines() for path in (folder / "predictions").iterdir()}
    assert answers.keys() == {"STS-B.tsv", "MNLI-m.tsv", "MNLI-mm.tsv"}
    assert all(lines[0] == "index\tprediction" for lines in answers.values())
    assert [line.split("\t")[0] for line in answers["MNLI-m.tsv"][1:]] == [str(number) for number in range(16)]
    assert all(0.0 <= float(line.split("\t")[1]) <= 5.0 for line in answers["STS-B.tsv"][1:])
    assert {line.split("\t")[1] for line in answers["MNLI-mm.tsv"][1:]} <= {"neutral", "entailment"}
    again = commands.run("suite", "glue", *wanted, *short, cwd=tmp_path)
    assert (again.code, "training records" in again.out, table in again.out) == (0, False, True)


def test_what_cannot_be_run_is_refused_before_anything_is_trained(files: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'SST' is no task of glue; its tasks are CoLA, SST-2, MRPC"):
        at_hand("glue", files=files, names=["SST"])
    with pytest.raises(UserError, match=r"RTE/train\.tsv: no such file; put RTE's published files there"):
        at_hand("glue", files=files, names=["RTE"])
    with pytest.raises(UserError, match=r"holds no task of clue: files are looked for as afqmc/train\.json"):
        at_hand("clue", files=files, names=None)
    write(tmp_path / "RTE/train.tsv", "index")
    with pytest.raises(UserError, match=r"RTE/dev\.tsv: no such file beside train\.tsv; put it there, or name --tasks"):
        at_hand("glue", files=tmp_path, names=None)
    write_sentiment(tmp_path)
    base = load_finetune_recipe(str(write_recipe(tmp_path)), overrides=["seeds=[1, 2]"])
    with pytest.raises(UserError, match=r"tiny has seeds=\[1, 2\], and a suite runs one: --set seeds=null, and seed=N"):
        task_config(task_of(glue, "RTE"), base, folder=tmp_path)
    base = load_finetune_recipe(str(write_recipe(tmp_path, task="  name: segmentation")))
    with pytest.raises(UserError, match=r"tiny is a recipe for segmentation; a suite needs one for classification"):
        task_config(task_of(glue, "RTE"), base, folder=tmp_path)


def test_only_the_tasks_named_are_run_and_what_is_left_out_is_told(files: Path, tmp_path: Path) -> None:
    chosen, absent = at_hand("glue", files=files, names=["STS-B"])
    assert ([task.name for task in chosen], "RTE" in absent, "SST-2" in absent) == (["STS-B"], True, False)
    folder = tmp_path / "files"
    for part in ("train", "dev"):
        write(folder / f"SST-2/{part}.tsv", "sentence\tlabel", "fine\t1", "dull")
    write(folder / "SST-2/test.tsv", "index\tsentence", "7\tfine")
    told: list[str] = []
    ready = prepare(task_of(glue, "SST-2"), files=folder, folder=tmp_path / "out", report=told.append)
    assert ready.tests["SST-2"][1] == ["7"]
    assert told == [
        f"{folder}/SST-2/{part}.tsv: 1 lines without a label, a text or the file's columns were left out"
        for part in ("train", "dev")
    ]
