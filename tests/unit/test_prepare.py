from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from small_corpus import folder_bytes, made_up_documents, write_lines

from data_pipeline.manifest import load_manifest
from data_pipeline.tokenizer import Tokenizer
from trainer.config import Config
from trainer.errors import UserError
from trainer.prepare import _in_words_of_the_recipe, pin_shards, resolve_package_path, shard_folders


def config(folder: Path, **data: object) -> Config:
    return Config.model_validate(
        {
            "name": "own",
            "runs_dir": str(folder / "runs"),
            "data": {"text": [str(folder / "text.txt")], "validation_fraction": 0.1, **data},
            "tokenizer": {"vocab_size": 150},
            "train": {"steps": 1, "global_batch_size": 1, "micro_batch_size": 1},
        }
    )


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path: Path = write_lines(tmp_path / "text.txt", made_up_documents(200))
    return path


def prepared(recipe: Config) -> tuple[Path, list[str]]:
    told: list[str] = []
    (folder,) = shard_folders(recipe, report=told.append)
    return folder, told


def test_shards_that_the_recipe_names_are_taken_as_they_are(tmp_path: Path) -> None:
    recipe = config(tmp_path)
    named = recipe.model_copy(update={"data": recipe.data.model_copy(update={"shards": "some/shards", "text": None})})
    assert prepared(named) == (Path("some/shards"), [])


def test_raw_text_becomes_a_tokenizer_and_shards_in_the_run_folder(text: Path, tmp_path: Path) -> None:
    folder, told = prepared(config(tmp_path))
    assert folder.parent.parent == tmp_path / "runs" / "own" / "data"
    assert told == ["training a tokenizer of 150 pieces on 1 input path(s)", f"building token shards in {folder}"]
    manifest = load_manifest(folder)
    assert (manifest.vocab_size, manifest.input_documents) == (150, 200)
    assert manifest.tokenizer_sha256 == Tokenizer.load(folder / "tokenizer").sha256


def test_what_is_there_is_reused(text: Path, tmp_path: Path) -> None:
    folder, _ = prepared(config(tmp_path))
    content = folder_bytes(folder)
    assert prepared(config(tmp_path)) == (folder, [])
    assert folder_bytes(folder) == content


def test_an_interrupted_build_goes_on_with_its_tokenizer(text: Path, tmp_path: Path) -> None:
    folder, _ = prepared(config(tmp_path))
    fingerprint = load_manifest(folder).fingerprint
    (folder / "manifest.json").unlink()
    assert prepared(config(tmp_path)) == (folder, [f"building token shards in {folder}"])
    assert load_manifest(folder).fingerprint == fingerprint


@pytest.mark.parametrize("what", ["text", "size of the vocabulary", "held-out share"])
def test_other_text_and_other_settings_are_prepared_anew(text: Path, tmp_path: Path, what: str) -> None:
    recipe = config(tmp_path)
    folder, _ = prepared(recipe)
    if what == "text":
        write_lines(text, made_up_documents(200, seed=1))
        os.utime(text, ns=(1, 1))
    elif what == "size of the vocabulary":
        recipe = recipe.model_copy(update={"tokenizer": recipe.tokenizer.model_copy(update={"vocab_size": 160})})  # type: ignore[union-attr]
    else:
        recipe = config(tmp_path, validation_fraction=0.2)
    other, told = prepared(recipe)
    assert other != folder
    assert len(told) == 2
    assert load_manifest(other).fingerprint != load_manifest(folder).fingerprint


def test_duplicates_and_word_starts_are_as_the_recipe_says(text: Path, tmp_path: Path) -> None:
    write_lines(text, [*made_up_documents(200), *made_up_documents(50)])
    plain, _ = prepared(config(tmp_path))
    distinct, _ = prepared(config(tmp_path, deduplicate=True))
    with_words, _ = prepared(config(tmp_path, word_starts="jieba"))
    manifests = [load_manifest(folder) for folder in (plain, distinct, with_words)]
    assert [manifest.duplicate_documents for manifest in manifests] == [0, 50, 0]
    assert ["words" in manifest.fields for manifest in manifests] == [False, False, True]


def test_a_missing_segmenter_is_said_in_the_words_of_the_recipe(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(UserError, match=r"data\.word_starts: jieba needs jieba, .*pip install 'bertline\[zh\]'"):
        prepared(config(tmp_path, word_starts="jieba"))


def test_without_the_text_the_shards_made_from_it_are_used(text: Path, tmp_path: Path) -> None:
    folder, _ = prepared(config(tmp_path))
    text.unlink()
    found, told = prepared(config(tmp_path))
    assert found == folder
    assert told == [
        f"{text} does not exist; name a file, a folder or a glob; going on with the shards that were made from it"
    ]


def test_without_the_text_shards_of_other_settings_are_not_taken(text: Path, tmp_path: Path) -> None:
    prepared(config(tmp_path))
    text.unlink()
    with pytest.raises(UserError, match=r"text\.txt does not exist"):
        prepared(config(tmp_path, validation_fraction=0.2))


def test_several_runs_may_share_what_was_prepared(text: Path, tmp_path: Path) -> None:
    folder, _ = prepared(config(tmp_path, prepared=str(tmp_path / "shared")))
    assert folder.parent.parent == tmp_path / "shared"
    renamed = config(tmp_path, prepared=str(tmp_path / "shared")).model_copy(update={"name": "another"})
    assert prepared(renamed) == (folder, [])


def test_a_path_inside_a_package_is_found_without_importing_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "some_corpus" / "texts").mkdir(parents=True)
    (tmp_path / "some_corpus" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve_package_path("package:some_corpus/texts") == str(tmp_path / "some_corpus" / "texts")
    assert resolve_package_path("texts/a.txt") == "texts/a.txt"


@pytest.mark.parametrize("path", ["package:no_such_package/x", "package:", "package:../x", "package:json.decoder/x"])
def test_a_package_that_is_not_there_is_named(path: str) -> None:
    with pytest.raises(UserError, match="which is not installed; pip install it"):
        resolve_package_path(path)


def mixed(tmp_path: Path, *sources: dict[str, object], tokenizer: dict[str, int] | None) -> Config:
    data = {"sources": list(sources), "validation_fraction": 0.1}
    train = {"steps": 1, "global_batch_size": 1, "micro_batch_size": 1}
    values = {"name": "own", "runs_dir": str(tmp_path / "runs"), "data": data, "tokenizer": tokenizer, "train": train}
    return Config.model_validate(values)


def test_sources_of_raw_text_share_a_tokenizer_made_of_all_of_them(text: Path, tmp_path: Path) -> None:
    other = write_lines(tmp_path / "other.txt", made_up_documents(100, seed=3))
    sources = [{"name": "a", "weight": 1.0, "text": str(text)}, {"name": "b", "weight": 1.0, "text": str(other)}]
    recipe = mixed(tmp_path, *sources, tokenizer={"vocab_size": 150})
    told: list[str] = []
    folders = shard_folders(recipe, report=told.append)
    assert [folder.name for folder in folders] == ["shards-a", "shards-b"]
    assert told == [
        "training a tokenizer of 150 pieces on 2 input path(s)",
        *(f"building token shards in {folder}" for folder in folders),
    ]
    manifests = [load_manifest(folder) for folder in folders]
    assert [manifest.input_documents for manifest in manifests] == [200, 100]
    assert manifests[0].tokenizer_sha256 == manifests[1].tokenizer_sha256
    assert shard_folders(recipe, report=told.append) == folders
    assert len(told) == 3


def test_raw_text_beside_shards_is_tokenized_as_they_are(text: Path, shards: Path, tmp_path: Path) -> None:
    sources = [{"name": "a", "weight": 1.0, "text": str(text)}, {"name": "b", "weight": 1.0, "shards": str(shards)}]
    folders = shard_folders(mixed(tmp_path, *sources, tokenizer=None), report=print)
    assert folders[1] == shards
    assert load_manifest(folders[0]).tokenizer_sha256 == load_manifest(shards).tokenizer_sha256


def test_pinned_recipes_name_the_shards_in_place_of_the_text(text: Path, shards: Path, tmp_path: Path) -> None:
    pinned = pin_shards(config(tmp_path, prepared="somewhere"), [shards])
    assert (pinned.data.shards, pinned.data.text, pinned.data.prepared) == (str(shards), None, None)
    assert pinned.tokenizer is None
    sources = [{"name": name, "weight": 2.0, "text": str(text)} for name in "ab"]
    several = pin_shards(mixed(tmp_path, *sources, tokenizer={"vocab_size": 150}), [shards, tmp_path])
    assert [(s.name, s.weight, s.shards, s.text) for s in several.data.sources] == [
        ("a", 2.0, str(shards), None),
        ("b", 2.0, str(tmp_path), None),
    ]
    assert Config.model_validate(several.model_dump()) == several


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "use a larger one, or a lower --character-coverage",
            "use a larger one, or a lower tokenizer.character_coverage",
        ),
        ("--character-coverage 2 is outside", "tokenizer.character_coverage=2 is outside"),
        (
            "is over --max-document-bytes 50; split it into lines (or --document blank-line), or raise the limit",
            "is over the limit of 50; split it into lines (or data.document: blank-line)",
        ),
    ],
)
def test_what_the_data_commands_say_of_options_is_said_of_keys(said: str, told: str) -> None:
    assert _in_words_of_the_recipe(said) == told
