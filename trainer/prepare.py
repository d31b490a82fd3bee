"""Shards for a run: the folders the recipe names, or a tokenizer and shards made once from its raw text."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.atomic import write_atomically
from data_pipeline.build import build_shards
from data_pipeline.inputs import InputFile, expand_inputs
from data_pipeline.manifest import MANIFEST_FILE, TOKENIZER_FOLDER
from data_pipeline.remote_shards import CacheSettings, open_shards
from data_pipeline.tokenizer import METADATA_FILE, Tokenizer, train_tokenizer
from trainer.config import Config, TokenizerConfig, fingerprint
from trainer.data_config import PACKAGE_SCHEME, CacheConfig
from trainer.errors import UserError

GIB = 1 << 30
SETTINGS_FILE = "settings.json"
_RECIPE_KEYS = {
    "--vocab-size ": "tokenizer.vocab_size=",
    "--character-coverage ": "tokenizer.character_coverage=",
    "--character-coverage": "tokenizer.character_coverage",
    "over --max-document-bytes": "over the limit of",
    ", or raise the limit": "",
    "--validation-fraction ": "data.validation_fraction=",
    "--text-field": "data.text_field",
    "--document blank-line": "data.document: blank-line",
    "--word-starts ": "data.word_starts: ",
    "set it to 0": "set it to 0 with evaluation: null",
}


def shard_folders(config: Config, *, report: Callable[[str], None]) -> list[Path]:
    """Each source's folder of token shards, made first where the recipe names raw text; one process calls it.

    What is there from an earlier run is reused while the text files and the settings are the same, and when the text
    is no longer there. Sources of raw text share one tokenizer, that of the first source of shards if there is one.
    Raises UserError for bad input.
    """
    sources = config.data.all_sources
    folders = {source.name: local_shards(source.shards, config) for source in sources if source.shards is not None}
    if config.data.has_text:
        tokenizer = next(iter(folders.values())) / TOKENIZER_FOLDER if folders else None
        folders |= _shards_in(_made_from_text(config, tokenizer=tokenizer, report=report), config)
    return [folders[source.name] for source in sources]


def local_shards(place: str | Path, config: Config) -> Path:
    """The folder through which `place` is read on this host, which for one on the network mirrors it; any rank."""
    cache = config.data.cache or CacheConfig()
    folder = Path(cache.folder) if cache.folder else config.run_dir / "data"
    return open_shards(place, cache=CacheSettings(folder, max_bytes=int(cache.max_gib * GIB)))


def pin_shards(config: Config, folders: Sequence[Path]) -> Config:
    """The recipe with every source's shards where they lie now, in place of the text they were made from."""
    sources = [
        source.model_copy(update={"shards": str(folder), "text": None})
        for source, folder in zip(config.data.all_sources, folders, strict=True)
    ]
    where = {"sources": sources} if config.data.sources else {"shards": str(folders[0])}
    of_text = {"prepared": None, "word_starts": "vocabulary", "deduplicate": False, "cache": None}
    data = config.data.model_copy(update={"shards": None, "text": None, **of_text, **where})
    return config.model_copy(update={"data": data, "tokenizer": None})


def _made_from_text(config: Config, *, tokenizer: Path | None, report: Callable[[str], None]) -> Path:
    """The folder that holds the shards of all sources of raw text, and their tokenizer unless it is given."""
    base = Path(config.data.prepared) if config.data.prepared else config.run_dir / "data"
    settings = _settings(config, tokenizer=tokenizer)
    try:
        texts = {name: [resolve_package_path(path) for path in paths] for name, paths in _texts(config).items()}
        files = {name: expand_inputs(paths) for name, paths in texts.items()}
    except UserError as error:
        kept = _finished_with(settings, base=base, config=config)
        if kept is None:
            raise
        report(f"{error}; going on with the shards that were made from it")
        return kept
    folder = base / _key(files, settings)
    if not _is_finished(folder, config):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / SETTINGS_FILE, (json.dumps(settings, indent=2) + "\n").encode())
        try:
            tokenizer = tokenizer or _make_tokenizer(config, texts, folder=folder / "tokenizer", report=report)
            for name, out in _shards_in(folder, config).items():
                _build(config, texts[name], tokenizer=tokenizer, out=out, report=report)
        except UserError as error:
            raise UserError(_in_words_of_the_recipe(str(error))) from error
    return folder


def _texts(config: Config) -> dict[str, list[str]]:
    return {source.name: source.text for source in config.data.all_sources if source.text is not None}


def _shards_in(folder: Path, config: Config) -> dict[str, Path]:
    """Where the shards of each source of raw text lie in a folder made for them."""
    return {name: folder / (f"shards-{name}" if config.data.sources else "shards") for name in _texts(config)}


def _is_finished(folder: Path, config: Config) -> bool:
    return all((shards / MANIFEST_FILE).exists() for shards in _shards_in(folder, config).values())


def resolve_package_path(path: str, *, key: str = "data.text") -> str:
    """`package:NAME/sub/folder` as a path inside an installed Python package; other paths as they are."""
    if not path.startswith(PACKAGE_SCHEME):
        return path
    name, _, rest = path.removeprefix(PACKAGE_SCHEME).partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{key}: {path} names the Python package {name!r}, which is not installed; pip install it")
    return str(Path(next(iter(spec.submodule_search_locations))) / rest)


def _in_words_of_the_recipe(message: str) -> str:
    """What the data commands say of their options, said of the recipe's keys."""
    for option, key in _RECIPE_KEYS.items():
        message = message.replace(option, key)
    return message


def _settings(config: Config, *, tokenizer: Path | None) -> dict[str, Any]:
    """What of the recipe decides the shards, the files' content aside."""
    data = config.data
    made = (config.tokenizer or TokenizerConfig()).model_dump()
    return {
        "text": _texts(config),
        "text_field": data.text_field,
        "document": data.document,
        "validation_fraction": data.validation_fraction,
        "word_starts": data.word_starts,
        "deduplicate": data.deduplicate,
        "tokenizer": Tokenizer.load(tokenizer).sha256 if tokenizer else made,
    }


def _key(files: Mapping[str, Sequence[InputFile]], settings: Mapping[str, Any]) -> str:
    read = {name: [(str(file.path), file.size, file.version) for file in of_name] for name, of_name in files.items()}
    return fingerprint({"files": read, **settings})[:12]


def _finished_with(settings: dict[str, Any], *, base: Path, config: Config) -> Path | None:
    """The folder made last with these settings, None when there is none with all its shards."""
    same = [path for path in base.glob(f"*/{SETTINGS_FILE}") if json.loads(path.read_bytes()) == settings]
    finished = [path for path in same if _is_finished(path.parent, config)]
    return max(finished, key=lambda path: path.stat().st_mtime_ns).parent if finished else None


def _make_tokenizer(
    config: Config, texts: Mapping[str, list[str]], *, folder: Path, report: Callable[[str], None]
) -> Path:
    """The folder of a tokenizer trained on all texts, unless it is there already."""
    tokenizer = config.tokenizer or TokenizerConfig()
    data = config.data
    paths = [path for of_source in texts.values() for path in of_source]
    if not (folder / METADATA_FILE).exists():
        report(f"training a tokenizer of {tokenizer.vocab_size} pieces on {len(paths)} input path(s)")
        train_tokenizer(
            paths,
            out=folder,
            vocab_size=tokenizer.vocab_size,
            model_type=tokenizer.model_type,
            character_coverage=tokenizer.character_coverage,
            seed=tokenizer.seed,
            document=data.document,
            text_field=data.text_field,
        )
    return folder


def _build(config: Config, paths: list[str], *, tokenizer: Path, out: Path, report: Callable[[str], None]) -> None:
    data = config.data
    report(f"building token shards in {out}")
    build_shards(
        paths,
        tokenizer=tokenizer,
        out=out,
        validation_fraction=data.validation_fraction,
        document=data.document,
        text_field=data.text_field,
        word_starts=data.word_starts,
        deduplicate=data.deduplicate,
    )
