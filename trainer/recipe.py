"""A recipe (YAML) and the command line's overrides become one checked Config, or FineTuneConfig."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import ValidationError

from trainer.config import Config, RunConfig
from trainer.errors import UserError
from trainer.finetune_config import FineTuneConfig
from trainer.setting_errors import describe_errors, known_keys, unknown_key
from trainer.strict_yaml import KeyPath, YamlDocument, dump_yaml, parse_yaml

RECIPES_DIR = Path(__file__).parent / "recipes"

AnyConfig: TypeAlias = Config | FineTuneConfig
# The sections that only a fine-tuning recipe has.
_FINE_TUNING_SECTIONS = ("task", "start")


def load_recipe(path_or_name: str, *, overrides: Sequence[str] = ()) -> Config:
    """Read a pretraining recipe: a file, or one of that name in trainer/recipes/, and apply `section.key=value`s.

    Raises UserError, in one line naming file, line and key, for whatever is wrong with either.
    """
    config = load_any_recipe(path_or_name, overrides=overrides)
    if isinstance(config, FineTuneConfig):
        raise UserError(f"{path_or_name} is a fine-tuning recipe (it has a task section); this needs a pretraining one")
    return config


def load_finetune_recipe(path_or_name: str, *, overrides: Sequence[str] = ()) -> FineTuneConfig:
    """Read a fine-tuning recipe as `load_recipe` reads a pretraining one."""
    config = load_any_recipe(path_or_name, overrides=overrides)
    if isinstance(config, Config):
        raise UserError(
            f"{path_or_name} is a pretraining recipe (it has no task section); this needs a fine-tuning one"
        )
    return config


def load_any_recipe(path_or_name: str, *, overrides: Sequence[str] = ()) -> AnyConfig:
    """Read a recipe of either kind; one with a `task` or a `start` section is for fine-tuning."""
    path = _find_recipe(path_or_name)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text at byte {error.start}; save the recipe as UTF-8") from None
    return parse_recipe(text, source=str(path), overrides=overrides)


def parse_recipe(text: str, *, source: str, overrides: Sequence[str] = ()) -> AnyConfig:
    """The config that a recipe's text stands for; `source` names it in errors."""
    document = parse_yaml(text, source=source)
    if document.value is None:
        raise UserError(f"{source}: the recipe is empty; it needs at least name, data and train")
    if not isinstance(document.value, dict):
        raise UserError(f"{source}: a recipe is a mapping of keys to values, found a {type(document.value).__name__}")
    values, origins, lost = document.value, {}, []
    root: type[AnyConfig] = FineTuneConfig if any(name in values for name in _FINE_TUNING_SECTIONS) else Config
    for override in overrides:
        path, value = _parse_override(override, root=root)
        if not _assign(values, path, value):
            lost.append(override)
        origins[path] = f"--set {override}"
    try:
        config = root.model_validate(values)
    except ValidationError as error:
        locate = _locator(document, source=source, origins=origins)
        raise UserError(describe_errors(error, root=root, locate=locate)) from None
    if lost:
        section = lost[0].partition("=")[0].rpartition(".")[0]
        raise UserError(f"--set {lost[0]}: the recipe holds one value for {section}, no keys; set {section} as a whole")
    return config


def dump_config(config: RunConfig) -> str:
    """YAML of the whole resolved recipe; `parse_recipe` reads an equal one back from it."""
    return dump_yaml(config.model_dump())


def _find_recipe(path_or_name: str) -> Path:
    path = Path(path_or_name)
    if path.suffix in {".yaml", ".yml"} or len(path.parts) > 1:
        if path.is_file():
            return path
        raise UserError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; a recipe is a YAML file")
    named = RECIPES_DIR / f"{path_or_name}.yaml"
    if path_or_name and named.is_file():
        return named
    known = sorted(recipe.stem for recipe in RECIPES_DIR.glob("*.yaml"))
    nearest = difflib.get_close_matches(path_or_name, known, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(known) or 'none'}"
    raise UserError(f"{path_or_name!r} is neither a .yaml file nor a recipe of {RECIPES_DIR.name}/; {hint}")


def _parse_override(override: str, *, root: type[AnyConfig]) -> tuple[KeyPath, Any]:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise UserError(f"--set {override}: not of the form section.key=value, as in --set train.steps=100")
    lists = {known.split("[]")[0] for known in known_keys(root) if "[]" in known}
    for name in lists:
        if key.startswith((f"{name}.", f"{name}[")):
            raise UserError(f"--set {override}: {name} is a list; set it as a whole, as in --set '{name}=[...]'")
    if key not in known_keys(root):
        raise UserError(f"--set {override}: {unknown_key(key, root=root)}")
    return tuple(key.split(".")), parse_yaml(text, source=f"--set {override}").value


def _assign(values: dict[str, Any], path: KeyPath, value: Any) -> bool:
    """Put a value in its place; False where the recipe holds no section there, as its check may say too."""
    section: Any = values
    for part in path[:-1]:
        if section.get(part) is None:
            section[part] = {}
        section = section[part]
        if not isinstance(section, dict):
            return False
    section[path[-1]] = value
    return True


def _locator(document: YamlDocument, *, source: str, origins: dict[KeyPath, str]) -> Callable[[KeyPath], str]:
    def locate(path: KeyPath) -> str:
        for length in range(len(path), 0, -1):
            if path[:length] in origins:
                return origins[path[:length]]
            if path[:length] in document.lines:
                return f"{source}:{document.lines[path[:length]]}"
        return source

    return locate
