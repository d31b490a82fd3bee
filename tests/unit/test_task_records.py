"""Labelled files: what is read, and every mistake named with file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from trainer.errors import UserError
from trainer.finetune_config import ClassificationConfig, SegmentationConfig, TaggingConfig, TaskDataConfig
from trainer.tasks.classification import Classification, weights_of
from trainer.tasks.classification_records import ClassificationReader
from trainer.tasks.examples import Record
from trainer.tasks.segmentation import SegmentationReader
from trainer.tasks.tagging_records import TaggingReader


def data(**settings: object) -> TaskDataConfig:
    return TaskDataConfig.model_validate({"train": "t", "validation": "v", **settings})


def classification(**settings: object) -> ClassificationConfig:
    return ClassificationConfig.model_validate({"name": "classification", **settings})


def tagging(**settings: object) -> TaggingConfig:
    return TaggingConfig.model_validate({"name": "tagging", **settings})


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_every_format_gives_the_same_records(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"label": "pos", "text": 'a "fine" film'}, {"label": "neg", "text": "dull, dull"}]
    tsv = "label\ttext\n" + "".join(f"{row['label']}\t{row['text']}\n" for row in rows)
    files = [
        write(tmp_path, "a.tsv", tsv),
        write(tmp_path, "bom.tsv", b"\xef\xbb\xbf" + tsv.replace("\n", "\r\n").encode()),
        write(tmp_path, "b.tsv.gz", gzip.compress(tsv.encode())),
        write(tmp_path, "c.csv", 'label,text\npos,"a ""fine"" film"\nneg,"dull, dull"\n'),
        write(tmp_path, "d.jsonl", "".join(json.dumps(row) + "\n" for row in rows)),
        tmp_path / "e.parquet",
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), files[-1])
    reader = ClassificationReader(classification(), data())
    for path in files:
        found = [(record.inputs, record.target) for record in reader.read(path, labelled=True)]
        assert found == [(('a "fine" film',), "pos"), (("dull, dull",), "neg")], path


def test_columns_may_be_named_where_a_file_has_no_header(tmp_path: Path) -> None:
    path = write(tmp_path, "a.tsv", "1\tone\ttwo\n0\tthree\tfour\n")
    reader = ClassificationReader(classification(text="x", pair="y"), data(columns=["label", "x", "y"]))
    assert reader.read(path, labelled=True) == [
        Record(f"{path}:1", ("one", "two"), "1"),
        Record(f"{path}:2", ("three", "four"), "0"),
    ]
    assert reader.read(path, labelled=False)[0].target is None


def test_several_labels_come_as_a_list_or_parted_text(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"text": "x", "label": ["a", "b"]}\n{"text": "y", "label": "b, c"}\n')
    records = ClassificationReader(classification(output="labels"), data()).read(path, labelled=True)
    assert [record.target for record in records] == [("a", "b"), ("b", "c")]


@pytest.mark.parametrize(
    ("name", "content", "settings", "message"),
    [
        ("a.tsv", "label\ttext\npos\tx\nneg\n", {}, r"a\.tsv:3: 1 columns, where there are 2 \(label, text\); mend"),
        ("a.tsv", "label\ttext\npos\t  \n", {}, r"a\.tsv:2: column 'text' is empty; fill it or remove the line"),
        ("a.tsv", "label\ttext\n \tx\n", {}, r"a\.tsv:2: column 'label' holds no label, but ' '"),
        ("a.tsv", "lable\ttext\npos\tx\n", {}, r"a\.tsv:2: no column 'label'; the columns are 'lable', 'text'"),
        ("a.tsv", "text\ttext\npos\tx\n", {}, r"a\.tsv:1: the header names a column twice"),
        ("a.tsv", b"label\ttext\npos\tcaf\xe9\n", {}, r"a\.tsv:2: not UTF-8 at byte 7 of the line \(0xe9\)"),
        ("a.tsv", "label\ttext\n".encode("utf-16-le"), {}, r"a\.tsv:1: a zero byte, as in UTF-16"),
        ("a.tsv", "\n", {}, r"a\.tsv: the file is empty"),
        ("a.tsv", "label\ttext\n", {}, r"a\.tsv: the table holds no record; it must hold at least one below"),
        ("a.tsv.gz", b"label\ttext\n", {}, r"a\.tsv\.gz: not a whole gzip file"),
        ("a.csv", 'label,text\npos,"x\nneg,y\n', {}, r"a\.csv:2: not CSV"),
        ("a.xls", "x", {}, r"a\.xls: its suffix is none of a table's: \.tsv, \.csv, \.jsonl, \.parquet"),
        ("a.jsonl", '{"text": "x", "label": "a"}\n{"text": \n', {}, r"a\.jsonl:2: JSON does not parse"),
        ("a.jsonl", "[1]\n", {}, r"a\.jsonl:1: a JSON list, where an object is needed"),
        ("a.jsonl", '{"text": 7, "label": "a"}\n', {}, r"a\.jsonl:1: column 'text' is int, not text"),
        ("a.jsonl", '{"text": "x", "label": null}\n', {}, r"a\.jsonl:1: column 'label' holds no label, but None"),
        ("a.tsv", "label\ttext\nnan\tx\n", {"output": "number"}, r"a\.tsv:2: column 'label' is 'nan', where a finite"),
        (
            "a.tsv",
            "label\ttext\nhigh\tx\n",
            {"output": "number"},
            r"a\.tsv:2: column 'label' is 'high', where a finite",
        ),
        ("a.jsonl", '{"text": "x", "label": 3}\n', {"output": "labels"}, r"column 'label' is 3, neither a list of"),
    ],
)
def test_a_bad_line_is_named(
    tmp_path: Path, name: str, content: str | bytes, settings: dict[str, object], message: str
) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(UserError, match=message):
        ClassificationReader(classification(**settings), data()).read(path, labelled=True)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.tsv: no such file; name a file of examples"):
        ClassificationReader(classification(), data()).read(tmp_path / "gone.tsv", labelled=True)


def test_named_columns_are_for_tsv_and_csv(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", "{}\n")
    with pytest.raises(UserError, match=r"data\.columns is for tsv and csv: remove it"):
        ClassificationReader(classification(), data(columns=["a"])).read(path, labelled=True)


def test_labels_are_those_of_the_training_file_unless_named() -> None:
    records = [Record("t:1", ("x",), "b"), Record("t:2", ("y",), "a")]
    assert Classification.find_labels(classification(), records) == ("a", "b")
    assert Classification.find_labels(classification(labels=["b", "a", "c"]), records) == ("b", "a", "c")
    task = Classification(classification(), data(), labels=("a", "b"))
    with pytest.raises(UserError, match=r"dev\.tsv:9: the label 'c' is unknown; the training file has a, b: mend"):
        task.check([*records, Record("dev.tsv:9", ("z",), "c")])
    with pytest.raises(UserError, match=r"t:1 and the lines after it know 1 label; at least 2 are needed"):
        Classification.find_labels(classification(), records[:1])


def test_class_weights_have_mean_one_over_the_training_records() -> None:
    records = [Record("t", ("x",), label) for label in "aaab"]
    plain = weights_of(classification(), labels=("a", "b"), records=records)
    balanced = weights_of(classification(class_weights="balanced"), labels=("a", "b"), records=records)
    own = weights_of(classification(class_weights={"a": 1.0, "b": 5.0}), labels=("a", "b"), records=records)
    assert plain == (1.0, 1.0)
    assert balanced == pytest.approx((2 / 3, 2.0))
    assert own == pytest.approx((0.5, 2.5))
    with pytest.raises(UserError, match=r"must name every label once, and 'b' is missing or no label"):
        weights_of(classification(class_weights={"a": 1.0}), labels=("a", "b"), records=records)


def test_a_conll_sentence_ends_at_a_blank_line(tmp_path: Path) -> None:
    path = write(tmp_path, "a.conll", "Ann NN B-PER\nLee NN I-PER\n\n\nsleeps VB O\n")
    records = TaggingReader(tagging(), data()).read(path, labelled=True)
    assert records == [
        Record(f"{path}:1", ("Ann", "Lee"), ("B-PER", "I-PER")),
        Record(f"{path}:5", ("sleeps",), ("O",)),
    ]
    parts = TaggingReader(tagging(tags=1, scheme="plain"), data()).read(path, labelled=True)
    assert parts[0].target == ("NN", "NN")
    assert TaggingReader(tagging(), data()).read(path, labelled=False)[0].target is None


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        ("a O\n\nb O\nc I-PER\n", {}, r"a\.conll:4: 'I-PER' follows 'O' and goes on with no PER: not BIO"),
        ("a B-PER\nb I-LOC\n", {}, r"a\.conll:2: 'I-LOC' follows 'B-PER' and goes on with no LOC"),
        ("a B\n", {}, r"a\.conll:1: 'B' is neither O nor B-TYPE or I-TYPE"),
        ("a S-PER\n", {}, r"a\.conll:1: 'S-PER' is neither O nor B-TYPE or I-TYPE"),
        ("a B-PER\nb O\n", {"scheme": "bioes"}, r"a\.conll:2: 'B-PER' is not ended by an E-PER: not BIOES"),
        ("a O\nb B-PER\n", {"scheme": "bioes"}, r"a\.conll:2: 'B-PER' is not ended by an E-PER"),
        ("a O\nb\n", {"tags": 1}, r"a\.conll:2: 1 columns, and the recipe asks for column 1"),
        ("a\t \n", {}, r"a\.conll:1: column -1 is empty"),
        ("a O\n", {"words": "w"}, r"columns of a \.conll file are numbers"),
    ],
)
def test_broken_tags_are_named_by_line(tmp_path: Path, content: str, settings: dict[str, object], message: str) -> None:
    path = write(tmp_path, "a.conll", content)
    with pytest.raises(UserError, match=message):
        TaggingReader(tagging(**settings), data()).read(path, labelled=True)


def test_sentences_may_be_lists_in_a_table(tmp_path: Path) -> None:
    good = write(tmp_path, "a.jsonl", '{"w": ["Ann", "Lee"], "t": "B-PER I-PER"}\n')
    reader = TaggingReader(tagging(words="w", tags="t"), data())
    assert reader.read(good, labelled=True) == [Record(f"{good}:1", ("Ann", "Lee"), ("B-PER", "I-PER"))]
    for line, message in {
        '{"w": ["a", "b"], "t": ["O"]}': r"b\.jsonl:1: 2 words and 1 tags; each word needs one",
        '{"w": ["a", " "], "t": ["O", "O"]}': r"b\.jsonl:1: column 'w' must be a list of words, none of them empty",
        '{"w": ["a", "b"], "t": ["O", "I-X"]}': r"b\.jsonl:1: word 2: 'I-X' follows 'O'",
    }.items():
        with pytest.raises(UserError, match=message):
            reader.read(write(tmp_path, "b.jsonl", line + "\n"), labelled=True)
    with pytest.raises(UserError, match=r"columns of a table have names; set task\.words and task\.tags"):
        TaggingReader(tagging(), data()).read(good, labelled=True)


def test_a_segmented_line_gives_characters_and_their_tags(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "迈向 充满 希望 的 新世纪\n")
    reader = SegmentationReader(SegmentationConfig(name="segmentation"), data())
    assert reader.read(path, labelled=True) == [Record(f"{path}:1", tuple("迈向充满希望的新世纪"), tuple("BEBEBESBME"))]
    assert reader.from_line("迈 向\n", where="x:1") == Record("x:1", ("迈", "向"))
    with pytest.raises(UserError, match=r"b\.txt:2: the line is empty, and must hold a sentence"):
        reader.read(write(tmp_path, "b.txt", "迈向\n\n充满\n"), labelled=True)


def test_a_plain_line_is_a_text_a_pair_or_a_sentence() -> None:
    assert ClassificationReader(classification(), data()).from_line("a\tb", where="x:1").inputs == ("a\tb",)
    pairs = ClassificationReader(classification(pair="other"), data())
    assert pairs.from_line("a\tb", where="x:1").inputs == ("a", "b")
    with pytest.raises(UserError, match=r"x:2: the line must be two texts with a tab between"):
        pairs.from_line("a", where="x:2")
    with pytest.raises(UserError, match=r"x:3: the line must be a text that is not empty"):
        ClassificationReader(classification(), data()).from_line(" ", where="x:3")
    assert TaggingReader(tagging(), data()).from_line("ann lee", where="x:1").inputs == ("ann", "lee")
    characters = TaggingReader(tagging(unit="character"), data())
    assert characters.from_line("江 泽民", where="x:1").inputs == ("江", "泽", "民")
    with pytest.raises(UserError, match=r"x:4: the line is empty"):
        characters.from_line(" ", where="x:4")
