from __future__ import annotations

import base64
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from small_corpus import made_up_documents, write_lines

from data_pipeline.__main__ import main
from data_pipeline.build import build_shards
from data_pipeline.example_rows import ExampleRow, RowToken, TokenKind
from data_pipeline.facts import gather_facts
from data_pipeline.page import write_page
from data_pipeline.tokenizer import train_tokenizer

EVIL = "<script>alert('ba')</script> ba & de"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    text = write_lines(folder / "a&b.txt", [EVIL, *made_up_documents(300)])
    train_tokenizer([text], out=folder / "tokenizer", vocab_size=200, character_coverage=1.0, progress=False)
    build_shards(
        [text],
        tokenizer=folder / "tokenizer",
        out=folder / "<shards>",
        workers=1,
        block_tokens=1000,
        validation_fraction=0.2,
        deduplicate=True,
        progress=False,
    )
    return folder / "<shards>"


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_escaped_and_loads_nothing(shards: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    facts = gather_facts(shards, examples=2)
    write_page(page, facts)
    content = page.read_text(encoding="utf-8")
    tags = _Tags()
    tags.feed(content)
    assert tags.open == []
    assert "script" not in tags.seen
    assert "&lt;script&gt;alert" in content
    assert "a&amp;b.txt" in content
    assert "&lt;shards&gt;" in content
    assert tags.sources
    assert all(source.startswith("data:image/svg+xml;base64,") for source in tags.sources)
    for source in tags.sources:
        assert ElementTree.fromstring(base64.b64decode(source.partition(",")[2])).tag.endswith("svg")
    assert not re.search(r"url\(|@import|<link", content)


def test_pieces_of_every_kind_are_escaped(shards: Path, tmp_path: Path) -> None:
    kinds: tuple[TokenKind, ...] = ("plain", "special", "unknown", "mask", "random", "kept")
    tokens = tuple(RowToken(kind, f"<g{kind}>", f"▁<o{kind}>") for kind in kinds)
    facts = replace(gather_facts(shards, examples=0), rows=[ExampleRow(0, tokens)])
    write_page(tmp_path / "page.html", facts)
    content = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"<[go](plain|special|unknown|mask|random|kept)", content)
    assert " &lt;oplain&gt;" in content
    assert '<b class="mask">&lt;gmask&gt;<i>&lt;omask&gt;</i></b>' in content
    assert '<b class="random">&lt;grandom&gt;<i>&lt;orandom&gt;</i></b>' in content


def test_the_page_and_the_report_tell_the_same_facts(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert main(["inspect", str(shards), "--html", str(page), "--examples", "1"]) == 0
    printed, content = capsys.readouterr().out, page.read_text(encoding="utf-8")
    facts = gather_facts(shards, examples=1)
    split = facts.splits[0]
    for fact in (
        facts.manifest.fingerprint,
        f"{split.unknown.rate:.4%}",
        f"{split.fill[2].fill:.2%}",
        f"{facts.manifest.splits['train'].tokens:,}",
        f"{split.percentiles[50]}",
    ):
        assert fact in printed
        assert fact in content
    assert "Latin" in printed
    assert "Latin" in content
    assert "[MASK]{" in printed
    for kind in ("mask", "random", "kept", "special"):
        assert f'class="{kind}"' in content
    assert f"{page}: written" in printed


def test_a_missing_matplotlib_is_one_line_and_leaves_no_page(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["inspect", str(shards), "--html", str(tmp_path / "page.html")]) == 2
    refusal = capsys.readouterr().err
    assert refusal.startswith("error: --html needs matplotlib")
    assert "pip install 'bertline[plots]'" in refusal
    assert not list(tmp_path.iterdir())


def test_a_page_that_cannot_be_written_is_one_line(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(shards), "--html", str(shards / "none/page.html")]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.endswith("none does not exist; make it first\n")
