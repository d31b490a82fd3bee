"""What a settings file did wrong, told in one line: the place, the key, the value found and the rule."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from trainer.strict_yaml import KeyPath

MAX_SHOWN = 3

_TYPE_RULES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "model_type": "a section of keys",
    "model_attributes_type": "a section of keys",
}
_TYPE_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a section of keys",
    type(None): "empty",
}


def known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted path that a settings file may hold: a section's own name, then what is in it; `a[].b` in lists."""
    for name, field in model.model_fields.items():
        yield prefix + name
        items = "[]" if get_origin(field.annotation) is list else ""
        sections = (known_keys(section, f"{prefix}{name}{items}.") for section in _sections(field.annotation))
        # The variants of a section share keys.
        yield from dict.fromkeys(chain.from_iterable(sections))


def _sections(annotation: Any) -> list[type[BaseModel]]:
    candidates = (annotation, *get_args(annotation))
    return [found for found in candidates if isinstance(found, type) and issubclass(found, BaseModel)]


def unknown_key(key: str, *, root: type[BaseModel]) -> str:
    """Say that a dotted path is no key of `root`, and name the nearest one, or all keys of its section."""
    section, _, name = re.sub(r"\[\d+\]", "[]", key).rpartition(".")
    keys = list(known_keys(root))
    siblings = [known.rpartition(".")[2] for known in keys if known.rpartition(".")[0] == section]
    nearest = difflib.get_close_matches(name, siblings, n=1)
    nearest = nearest or [known for known in keys if known.rpartition(".")[2] == name and "[]" not in known][:MAX_SHOWN]
    if not siblings:
        nearest = nearest or difflib.get_close_matches(key, keys, n=1)
        siblings = [known for known in keys if "." not in known]
    if nearest:
        return f"{key} is not a known key; did you mean {' or '.join(nearest)}?"
    return f"{key} is not a known key; the keys here are {', '.join(siblings)}"


def dotted(path: KeyPath) -> str:
    """`("data", "text", 0)` as `data.text[0]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def describe_errors(error: ValidationError, *, root: type[BaseModel], locate: Callable[[KeyPath], str]) -> str:
    """All mistakes that validating `root` found, in one line, unknown keys first; at most three and the count.

    `locate` names the place of a key path: `recipe.yaml:12`, or the `--set` it came from.
    """
    mistakes = sorted(error.errors(include_url=False), key=lambda mistake: mistake["type"] != "extra_forbidden")
    shown = []
    for mistake in mistakes[:MAX_SHOWN]:
        path, variant = _without_variants(mistake["loc"], root)
        shown.append(f"{locate(path)}: {_describe(mistake, dotted(path), variant, root)}")
    if len(mistakes) > MAX_SHOWN:
        shown.append(f"and {len(mistakes) - MAX_SHOWN} more")
    return "; ".join(shown)


def _without_variants(path: KeyPath, root: type[BaseModel]) -> tuple[KeyPath, type[BaseModel] | None]:
    """A path without the variants' names that pydantic adds to it, and the variant that the last key stands in."""
    plain: list[int | str] = []
    sections, variant = [root], None
    for part in path:
        variants = {section.model_fields["name"].default: section for section in sections} if len(sections) > 1 else {}
        if part in variants:
            variant = variants[part]
            sections = [variant]
            continue
        plain.append(part)
        field = next((section.model_fields.get(str(part)) for section in sections), None)
        sections = _sections(field.annotation) if field else []
    return tuple(plain), variant


def _describe(mistake: ErrorDetails, key: str, variant: type[BaseModel] | None, root: type[BaseModel]) -> str:
    kind, found = mistake["type"], mistake["input"]
    if kind == "extra_forbidden" and variant is not None and key in known_keys(root):
        name = f"{key.rpartition('.')[0]}.name={variant.model_fields['name'].default}"
        return f"{key} would be ignored with {name}, whose keys are {', '.join(variant.model_fields)}; remove it"
    if kind == "extra_forbidden":
        return unknown_key(key, root=root)
    if kind == "union_tag_invalid":
        choices = mistake["ctx"]["expected_tags"]
        tag = mistake["ctx"]["tag"]
        return f"{key}.name={tag!r} must be one of {choices}{_nearest_choice(tag, choices)}"
    if kind == "union_tag_not_found":
        return f"{key}.name is missing and has no default"
    if kind == "missing":
        return f"{key} is missing and has no default"
    if kind == "value_error":
        reason = str(mistake["ctx"]["error"])
        return reason if not key or reason.startswith(f"{key}.") else f"{key}: {reason}"
    subject = f"{key}={_shown(found)}" if isinstance(found, bool | int | float | str) else key
    if kind in _TYPE_RULES:
        found_type = _TYPE_NAMES.get(type(found), type(found).__name__)
        return f"{subject} is {found_type} and must be {_TYPE_RULES[kind]}{_hint(kind, found)}"
    if kind == "union_tag_invalid":
        kinds, given = mistake["ctx"]["expected_tags"], mistake["ctx"]["tag"]
        return f"{key}.kind={given!r} must be one of {kinds}{_nearest_choice(given, kinds)}"
    if kind == "union_tag_not_found":
        return f"{key}.kind is missing and has no default"
    if kind == "literal_error":
        return f"{subject} must be {mistake['ctx']['expected']}{_nearest_choice(found, mistake['ctx']['expected'])}"
    if kind == "string_pattern_mismatch":
        return f"{subject} must be letters, digits, '.', '_' and '-', beginning with a letter or a digit"
    return f"{subject} {mistake['msg'].replace('Input should be', 'must be')}"


def _shown(value: bool | int | float | str) -> str:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _hint(kind: str, found: Any) -> str:
    if kind in {"int_type", "int_from_float"} and isinstance(found, float) and found.is_integer():
        return f"; write {int(found)}"
    if kind == "string_type" and isinstance(found, bool | int | float):
        return f"; quote it: '{_shown(found)}'"
    return ""


def _nearest_choice(found: Any, expected: str) -> str:
    choices = re.findall(r"'([^']*)'", expected)
    nearest = difflib.get_close_matches(str(found), choices, n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""
