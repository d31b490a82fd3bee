"""Shards for a run: the folder the recipe names, or a tokenizer and shards made once from its raw text."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.atomic import write_atomically
from data_pipeline.build import build_shards
from data_pipeline.inputs import InputFile, expand_inputs
from data_pipeline.manifest import MANIFEST_FILE
from data_pipeline.tokenizer import METADATA_FILE, train_tokenizer
from trainer.config import Config, TokenizerConfig, fingerprint
from trainer.errors import UserError

PACKAGE_SCHEME = "package:"
SETTINGS_FILE = "settings.json"
_RECIPE_KEYS = {
    "--vocab-size ": "tokenizer.vocab_size=",
    "--character-coverage ": "tokenizer.character_coverage=",
    "--validation-fraction ": "data.validation_fraction=",
    "--text-field": "data.text_field",
    "--document blank-line": "data.document: blank-line",
    "--word-starts ": "data.word_starts: ",
    "set it to 0": "set it to 0 with evaluation: null",
}


def shards_folder(config: Config, *, report: Callable[[str], None]) -> Path:
    """The folder of token shards, made first if the recipe names raw text; one process calls it.

    What is there from an earlier run is reused while the text files and the settings are the same, and when the text
    is no longer there. Raises UserError for bad input.
    """
    if config.data.shards is not None:
        return Path(config.data.shards)
    base = Path(config.data.prepared) if config.data.prepared else config.run_dir / "data"
    try:
        paths = [resolve_package_path(path) for path in config.data.text or []]
        files = expand_inputs(paths)
    except UserError as error:
        kept = _finished_with(_settings(config), base=base)
        if kept is None:
            raise
        report(f"{error}; going on with the shards that were made from it")
        return kept
    folder = base / _key(config, files)
    if not (folder / "shards" / MANIFEST_FILE).exists():
        try:
            _build(config, paths, folder=folder, report=report)
        except UserError as error:
            raise UserError(_in_words_of_the_recipe(str(error))) from error
    return folder / "shards"


def resolve_package_path(path: str) -> str:
    """`package:NAME/sub/folder` as a path inside an installed Python package; other paths as they are."""
    if not path.startswith(PACKAGE_SCHEME):
        return path
    name, _, rest = path.removeprefix(PACKAGE_SCHEME).partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"data.text: {path} names the Python package {name!r}, which is not installed; pip install it")
    return str(Path(next(iter(spec.submodule_search_locations))) / rest)


def _in_words_of_the_recipe(message: str) -> str:
    """What the data commands say of their options, said of the recipe's keys."""
    for option, key in _RECIPE_KEYS.items():
        message = message.replace(option, key)
    return message


def _settings(config: Config) -> dict[str, Any]:
    """What of the recipe decides the shards, the files' content aside."""
    data = config.data
    return {
        "text": data.text,
        "text_field": data.text_field,
        "document": data.document,
        "validation_fraction": data.validation_fraction,
        "word_starts": data.word_starts,
        "deduplicate": data.deduplicate,
        "tokenizer": (config.tokenizer or TokenizerConfig()).model_dump(),
    }


def _key(config: Config, files: Sequence[InputFile]) -> str:
    read = [(str(file.path), file.size, file.modified_ns) for file in files]
    return fingerprint({"files": read, **_settings(config)})[:12]


def _finished_with(settings: dict[str, Any], *, base: Path) -> Path | None:
    """The shards made last with these settings, None when there are none."""
    manifests = [
        path.with_name("shards") / MANIFEST_FILE
        for path in base.glob(f"*/{SETTINGS_FILE}")
        if json.loads(path.read_bytes()) == settings
    ]
    finished = [path for path in manifests if path.exists()]
    return max(finished, key=lambda path: path.stat().st_mtime_ns).parent if finished else None


def _build(config: Config, paths: list[str], *, folder: Path, report: Callable[[str], None]) -> None:
    tokenizer = config.tokenizer or TokenizerConfig()
    data = config.data
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / SETTINGS_FILE, (json.dumps(_settings(config), indent=2) + "\n").encode())
    tokenizer_folder = folder / "tokenizer"
    if not (tokenizer_folder / METADATA_FILE).exists():
        report(f"training a tokenizer of {tokenizer.vocab_size} pieces on {len(paths)} input path(s)")
        train_tokenizer(
            paths,
            out=tokenizer_folder,
            vocab_size=tokenizer.vocab_size,
            model_type=tokenizer.model_type,
            character_coverage=tokenizer.character_coverage,
            seed=tokenizer.seed,
            document=data.document,
            text_field=data.text_field,
        )
    report(f"building token shards in {folder / 'shards'}")
    build_shards(
        paths,
        tokenizer=tokenizer_folder,
        out=folder / "shards",
        validation_fraction=data.validation_fraction,
        document=data.document,
        text_field=data.text_field,
        word_starts=data.word_starts,
        deduplicate=data.deduplicate,
    )
