"""Tasks from text to text: their records, examples, scores and what is refused."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_task import RECIPE

from trainer.errors import UserError
from trainer.finetune_config import FineTuneConfig, TaskDataConfig
from trainer.finetune_data import spread
from trainer.recipe import parse_recipe
from trainer.seq2seq_config import DecompositionConfig, SummarizationConfig, TranslationConfig
from trainer.tasks.choose import learn_task, reader_for, texts_of
from trainer.tasks.decomposition import Decomposition, DecompositionReader
from trainer.tasks.examples import Record, join_outputs, make_batch, split_outputs
from trainer.tasks.seq2seq_records import Seq2SeqReader
from trainer.tasks.summarization import Summarization
from trainer.tasks.translation import Translation, widened

CLS, SEP = 2, 3


class Letters:
    """A tokenizer of letters: a is 10, b is 11."""

    cls_id, sep_id, unk_id, vocab_size = CLS, SEP, 1, 40

    def encode(self, texts: list[str]) -> list[Any]:
        return [np.array([ord(letter) - 87 for letter in text], dtype=np.int32) for text in texts]

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(token + 87) for token in ids)


def data(**settings: Any) -> TaskDataConfig:
    return TaskDataConfig(train="", validation="", **settings)


def translation(**settings: Any) -> Translation:
    files = data(**{key: settings.pop(key) for key in ("max_length", "overlong") if key in settings})
    made = Translation(TranslationConfig(**settings), files)
    made.tokenizer = Letters()  # type: ignore[assignment]
    return made


def record(source: str, *targets: str) -> Record:
    return Record("x.tsv:7", (source,), targets or None)


def test_a_pair_becomes_a_framed_source_and_a_target_moved_by_one() -> None:
    (example,) = translation().examples([record("ab", "cde", "f")], Letters())  # type: ignore[arg-type]
    assert example.input_ids.tolist() == [CLS, 10, 11, SEP]
    assert example.rows.tolist() == [0, 1, 2, 3]
    assert example.targets is not None
    assert example.targets.T.tolist() == [[CLS, 12, 13, 14], [0, 1, 2, 3], [12, 13, 14, SEP]]
    assert (example.predictions, example.outputs, example.cut_tokens) == (4, 1, 0)
    (unlabelled,) = translation().examples([record("ab")], Letters())  # type: ignore[arg-type]
    assert (unlabelled.targets, unlabelled.outputs) == (None, 1)


def test_long_texts_are_cut_and_counted_or_refused() -> None:
    settings = {"max_length": 8, "target_length": 4}
    (example,) = translation(**settings).examples([record("abcdefgh", "abc")], Letters())  # type: ignore[arg-type]
    assert example.input_ids.tolist() == [CLS, 10, 11, 12, 13, 14, 15, SEP]
    assert example.targets is not None
    assert example.targets[:, 2].tolist() == [10, 11, SEP]
    assert example.cut_tokens == 3
    strict = translation(**settings, overlong="refuse")
    with pytest.raises(UserError, match=r"^x\.tsv:7: 10 tokens, longer than data\.max_length=8; raise it"):
        strict.examples([record("abcdefgh", "ab")], Letters())  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^x\.tsv:7: 5 tokens, longer than task\.target_length=4; raise it"):
        strict.examples([record("ab", "abc")], Letters())  # type: ignore[arg-type]


def test_one_output_comes_back_for_each_source_however_many_tokens_it_was_trained_on() -> None:
    made = translation()
    examples = made.examples([record("a", "bcd"), record("bb", "c")], Letters())  # type: ignore[arg-type]
    assert make_batch(examples, term="translation").term_counts() == {"translation": 6}
    found = {"tokens": np.array([[10, 11, -1], [12, -1, -1]]), "score": np.array([-0.5, -1.0])}
    joined = join_outputs(split_outputs(found, examples), examples)
    assert [made.prediction(record("a"), outputs) for outputs in joined] == [
        {"text": "ab", "score": -0.5},
        {"text": "c", "score": -1.0},
    ]


def test_a_column_may_hold_several_right_targets(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text('{"source": "a", "target": "b"}\n{"source": "c", "target": ["d", " e "]}\n')
    reader = Seq2SeqReader(TranslationConfig(), data())
    assert [one.target for one in reader.read(file, labelled=True)] == [("b",), ("d", "e")]
    assert [one.target for one in reader.read(file, labelled=False)] == [None, None]
    assert reader.from_line(" a b ", where="x:1") == Record("x:1", ("a b",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"source\ttarget\na\t \n", "train.tsv:2: column 'target' is empty; fill it or remove the line"),
        (b"source\ttarget\na\tb\n\tb\n", "train.tsv:3: column 'source' is empty; fill it or remove the line"),
        (b"source\tzh\na\tb\n", "train.tsv:2: no column 'target'; the columns are 'source', 'zh'"),
        (b"source\ttarget\na\tb\n\xc4\xe3\tb\n", "train.tsv:3: not UTF-8 at byte 0 of the line (0xc4)"),
    ],
)
def test_a_bad_line_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_bytes(content)
    with pytest.raises(UserError) as error:
        Seq2SeqReader(TranslationConfig(), data()).read(tmp_path / "train.tsv", labelled=True)
    assert str(error.value).startswith(f"{tmp_path}/{message}")


@pytest.mark.parametrize(
    ("value", "message"), [("[]", "is an empty list"), ('["a", ""]', "is empty; fill it"), ("3", "is int")]
)
def test_a_bad_target_list_is_named(value: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(f'{{"source": "a", "target": {value}}}\n')
    with pytest.raises(UserError, match=rf"train\.jsonl:1: column 'target' {message}"):
        Seq2SeqReader(TranslationConfig(), data()).read(tmp_path / "train.jsonl", labelled=True)


def test_an_empty_line_is_no_source() -> None:
    with pytest.raises(UserError, match=r"^standard input:3: the line must be a text that is not empty"):
        Seq2SeqReader(TranslationConfig(), data()).from_line(" ", where="standard input:3")


def predicted(*texts: str) -> list[dict[str, Any]]:
    return [{"text": text, "score": -1.0} for text in texts]


def test_translations_are_scored_against_every_reference() -> None:
    pytest.importorskip("sacrebleu")
    made = translation()
    records = [record("x", "the cat sat on the mat"), record("y", "a dog ran home now", "the dog went home again")]
    right = made.metrics(records, predicted("the cat sat on the mat", "the dog went home again"))
    assert right == pytest.approx({"bleu": 100.0, "chrf": 100.0})
    half = made.metrics(records, predicted("the cat sat on the mat", "nothing of the kind here"))
    assert 20.0 < half["bleu"] < 80.0


def test_chinese_is_compared_by_characters_and_punctuated_in_full_width() -> None:
    pytest.importorskip("sacrebleu")
    records = [record("x", "打开文件，然后保存。")]
    scores = {
        script: translation(script=script).metrics(records, predicted("打开文件，然后关闭。"))["bleu"]
        for script in ("spaced", "chinese")
    }
    assert scores["spaced"] == 0.0
    assert scores["chinese"] == pytest.approx(66.06, abs=0.01)
    assert widened("早,好(吗)?Yes, (no) (是)") == "早，好（吗）？Yes, (no) （是）"
    outputs = {"tokens": np.array([[10]]), "score": np.array([-1.0])}
    made = translation(script="chinese")
    made.tokenizer.decode = lambda ids: "早,好"  # type: ignore[method-assign]
    assert made.prediction(record("x"), outputs)["text"] == "早，好"


def test_summaries_are_scored_by_rouge_of_words_or_characters() -> None:
    pytest.importorskip("rouge_score")
    made = Summarization(SummarizationConfig(), data())
    records = [record("x", "archives of files"), record("y", "other words", "a game")]
    scores = made.metrics(records, predicted("archive files", "a game"))
    # Two of two and two of three stems; no pair of words; then all of the second reference.
    assert scores == pytest.approx({"rouge_1": 0.9, "rouge_2": 0.5, "rouge_l": 0.9})
    characters = Summarization(SummarizationConfig(script="chinese"), data())
    assert characters.metrics([record("x", "文件管理")], predicted("管理"))["rouge_1"] == pytest.approx(2 / 3)
    assert made.metrics([record("x", "文件管理")], predicted("管理"))["rouge_1"] == 0.0


def test_a_decomposition_is_right_as_a_whole_and_in_part() -> None:
    made = Decomposition(DecompositionConfig(), data())
    records = [record("明", "日 月"), record("万", "一 勹", "一 刀"), record("林", "木 木")]
    found = [{"parts": parts, "score": -1.0} for parts in (["日", "月"], ["一", "刀"], ["木"])]
    assert made.metrics(records, found) == pytest.approx({"exact_match": 2 / 3, "component_f1": (1 + 1 + 2 / 3) / 3})
    assert made.metrics([record("明", "日 月")], [{"parts": ["月", "日"]}])["exact_match"] == 0.0
    assert made.metrics([record("明", "日 月")], [{"parts": []}])["component_f1"] == 0.0


def test_a_character_can_be_spelt_by_its_code_point() -> None:
    made = Decomposition(DecompositionConfig(spelling="code_point"), data())
    assert made.source_text(record("明天")) == "6 6 0 E / 5 9 2 9"
    assert Decomposition(DecompositionConfig(), data()).source_text(record("明天")) == "明天"
    made.tokenizer = Letters()  # type: ignore[assignment]
    made.tokenizer.decode = lambda ids: "日 月"  # type: ignore[method-assign]
    outputs = {"tokens": np.array([[10]]), "score": np.array([-0.5])}
    assert made.prediction(record("明"), outputs) == {"parts": ["日", "月"], "score": -0.5}


def test_an_empty_way_beside_another_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"懴 ": [[], ["心", "千"]]}', encoding="utf-8")
    reader = DecompositionReader(DecompositionConfig(), data())
    (one,) = reader.read(tmp_path / "a.json", labelled=True)
    assert (one.inputs, one.target) == (("懴",), ("心 千",))


@pytest.fixture
def dictionary(tmp_path: Path) -> Path:
    entries = {chr(0x4E00 + number): [["一", chr(0x4E01 + number)], ["二"]] for number in range(200)}
    path = tmp_path / "chaizi.json.gz"
    path.write_bytes(gzip.compress(json.dumps(entries).encode()))
    return path


def test_parts_of_a_dictionary_make_the_whole_and_stay_when_it_grows(dictionary: Path) -> None:
    reader = DecompositionReader(DecompositionConfig(), data())
    parts = [reader.read(Path(f"{dictionary}#{part}"), labelled=True) for part in ("0:80", "80:90", "90:100")]
    whole = reader.read(dictionary, labelled=True)
    assert sorted(map(len, parts)) == sorted([len(parts[0]), len(parts[1]), len(parts[2])])
    assert {one.inputs for part in parts for one in part} == {one.inputs for one in whole}
    assert sum(map(len, parts)) == len(whole) == 200
    assert 130 < len(parts[0]) < 185
    assert whole[0] == Record(f"{dictionary}: 一", ("一",), ("一 丁", "二"))
    entries = {"〇": [["囗"]], **json.loads(gzip.decompress(dictionary.read_bytes()))}
    dictionary.write_bytes(gzip.compress(json.dumps(entries).encode()))
    again = reader.read(Path(f"{dictionary}#80:90"), labelled=True)
    assert [one for one in again if one.inputs != ("〇",)] == parts[1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json#90:80", "{}", "a part of a dictionary is #FROM:TO in percent, as in #80:90"),
        ("a.json#0:101", "{}", "a part of a dictionary is #FROM:TO in percent, as in #80:90"),
        ("a.json", "{}", "no entry of the dictionary is in this part"),
        ("a.json", "[1]", "a JSON list, where an object of characters is needed"),
        ("a.json", "{", "JSON does not parse"),
        ("a.json", '{"明": ["日", "月"]}', '明 has ["日", "月"], where a list of lists of components is needed'),
        ("a.json", '{"明": [[]]}', "明 has [[]], where a list of lists of components is needed"),
        ("a.json", '{"明": [["日", " "]]}', "明 has"),
        ("a.json", '{" ": [["日"]]}', "an entry without a character; remove it"),
    ],
)
def test_a_bad_dictionary_is_named(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as error:
        DecompositionReader(DecompositionConfig(), data()).read(tmp_path / name, labelled=True)
    assert str(error.value).startswith(f"{tmp_path}/a.json")
    assert message in str(error.value)


def recipe(task: str, **settings: str) -> FineTuneConfig:
    text = RECIPE.format(task=task, folder="f", suffix="tsv", pieces=40)
    config = parse_recipe(text, source="r.yaml", overrides=[f"{key}={value}" for key, value in settings.items()])
    assert isinstance(config, FineTuneConfig)
    return config


def test_a_target_longer_than_a_sequence_is_refused() -> None:
    with pytest.raises(UserError, match=r"task\.target_length=40 is longer than data\.max_length=32; raise the latter"):
        recipe("  name: translation\n  target_length: 40")


@pytest.mark.parametrize("name", ["translation", "summarization", "decomposition"])
def test_source_and_target_make_one_vocabulary(name: str) -> None:
    config = recipe(f"  name: {name}")
    assert list(texts_of(config, [record("ab", "c", "d")])) == ["ab", "c", "d"]
    assert learn_task(config, [record("ab", "c")]).term == name
    spelt = recipe("  name: decomposition\n  spelling: code_point")
    assert list(texts_of(spelt, [record("明", "日 月")])) == ["6 6 0 E", "日 月"]
    assert isinstance(reader_for(config), Seq2SeqReader)


@pytest.mark.parametrize(("name", "module"), [("translation", "sacrebleu"), ("summarization", "rouge_score")])
def test_a_missing_package_is_told_before_training(name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=r"needs the package .*; pip install 'bertline\[tasks\]'"):
        learn_task(recipe(f"  name: {name}"), [record("ab", "c")])


def test_records_to_score_are_spread_over_the_file() -> None:
    records = [record(str(number)) for number in range(10)]
    assert [one.inputs[0] for one in spread(records, 4)] == ["0", "2", "5", "7"]
    assert spread(records, None) == spread(records, 10) == records
