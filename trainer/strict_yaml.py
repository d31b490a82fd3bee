"""YAML without surprises: `1e-4` is a number, `on` is text, and a key stands only once."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from trainer.errors import UserError

KeyPath = tuple[str | int, ...]

_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*(?:_[0-9]+)*)$")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$")
_BOOL = re.compile(r"(?:true|false)$")
_NULL = re.compile(r"(?:null|~|)$")
_RULES = (
    ("tag:yaml.org,2002:null", _NULL, ["n", "~", ""]),
    ("tag:yaml.org,2002:bool", _BOOL, ["t", "f"]),
    ("tag:yaml.org,2002:int", _INT, list("-+0123456789")),
    ("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789")),
)


@dataclass(frozen=True)
class YamlDocument:
    """A parsed file: its plain value, and the line (from 1) on which each key path stands."""

    value: Any
    lines: Mapping[KeyPath, int]


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader with its own scalar rules, without aliases, explicit tags and repeated keys."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own table)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None):
            problem = "anchors and aliases (& and *) are not allowed; quote the text if it begins with one of them"
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        if getattr(event, "tag", None):
            raise yaml.composer.ComposerError(None, None, "explicit tags (!) are not allowed", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.tag != "tag:yaml.org,2002:str":
                found = f"the key {key.value}" if isinstance(key, yaml.ScalarNode) else "this key"
                problem = f"{found} is not text; quote it"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            if key.value in seen:
                problem = f"the key {key.value} stands twice, first on line {seen[key.value]}; remove one"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen[key.value] = line
        return super().construct_mapping(node, deep=True)


class _StrictDumper(yaml.SafeDumper):
    """SafeDumper that also quotes the texts which _StrictLoader would read as numbers."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # PyYAML writes Unicode's own line breaks bare and folds them into blanks on reading.
    style = '"' if re.search("[\x85\u2028\u2029]", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_StrictDumper.add_representer(str, _represent_text)
for _tag, _pattern, _first in _RULES:
    _StrictLoader.add_implicit_resolver(_tag, _pattern, _first)
    _StrictDumper.add_implicit_resolver(_tag, _pattern, _first)


def parse_yaml(text: str, *, source: str) -> YamlDocument:
    """Parse one YAML document; UserError in one line, with `source` and the line, when it is not well formed."""
    loader: _StrictLoader | None = None
    try:
        loader = _StrictLoader(text)
        node = loader.get_single_node()
        value = None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if mark and "\n" in text else source
        raise UserError(f"{where}: {', '.join(filter(None, (error.context, error.problem)))}") from None
    except RecursionError:
        raise UserError(f"{source}: nested too deeply to be read") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{source}: not readable as YAML: {' '.join(str(error).split())}") from None
    finally:
        if loader is not None:
            loader.dispose()
    lines: dict[KeyPath, int] = {}
    if node is not None:
        _collect_lines(node, (), lines)
    return YamlDocument(value=value, lines=lines)


def dump_yaml(value: Mapping[str, Any]) -> str:
    """Write plain values so that `parse_yaml` reads the same ones back, keys in their given order."""
    return yaml.dump(dict(value), Dumper=_StrictDumper, sort_keys=False, allow_unicode=True, width=120)


def _collect_lines(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int]) -> None:
    children: list[tuple[str | int, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        children = [(key.value, key, child) for key, child in node.value]
    elif isinstance(node, yaml.SequenceNode):
        children = [(index, child, child) for index, child in enumerate(node.value)]
    for part, marked, child in children:
        child_path = (*path, part)
        lines[child_path] = marked.start_mark.line + 1
        _collect_lines(child, child_path, lines)
