from __future__ import annotations

import gzip
import random
import sys
from pathlib import Path

import pytest

from data_pipeline.inputs import expand_inputs
from data_pipeline.streams import BLOCK_BYTES, byte_blocks
from trainer.errors import UserError

CONTENT = random.Random(0).randbytes(BLOCK_BYTES) * 2 + b"tail"


def _blocks(path: Path) -> list[bytes]:
    (file,) = expand_inputs([path])
    with path.open("rb") as handle:
        return list(byte_blocks(handle, file=file))


def _zstd(content: bytes) -> bytes:
    zstandard = pytest.importorskip("zstandard", reason="zstandard is not installed (bertline[zstd])")
    compressed: bytes = zstandard.ZstdCompressor().compress(content)
    return compressed


@pytest.mark.parametrize("suffix", ["txt", "txt.gz", "txt.zst"])
def test_blocks_are_the_content_cut_at_the_same_places_however_it_is_compressed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    compress = {"txt": bytes, "txt.gz": gzip.compress, "txt.zst": _zstd}[suffix]
    path.write_bytes(compress(CONTENT))
    blocks = _blocks(path)
    assert b"".join(blocks) == CONTENT
    assert [len(block) for block in blocks] == [BLOCK_BYTES, BLOCK_BYTES, 4]


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_concatenated_members_are_read_to_the_end(tmp_path: Path, suffix: str) -> None:
    compress = {"gz": gzip.compress, "zst": _zstd}[suffix]
    path = tmp_path / f"a.txt.{suffix}"
    path.write_bytes(compress(b"first ") + compress(b"second"))
    assert b"".join(_blocks(path)) == b"first second"


@pytest.mark.parametrize("suffix", ["gz", "zst"])
@pytest.mark.parametrize("kept", [0.3, 0.999])
def test_a_cut_file_is_refused_and_named(tmp_path: Path, suffix: str, kept: float) -> None:
    whole = {"gz": gzip.compress, "zst": _zstd}[suffix](CONTENT)
    path = tmp_path / f"a.txt.{suffix}"
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(UserError, match=rf"a\.txt\.{suffix} is cut short"):
        _blocks(path)


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_file_that_is_not_compressed_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt.{suffix}"
    path.write_bytes(b"plain text, not compressed at all")
    with pytest.raises(UserError, match="is not valid"):
        _blocks(path)


def test_a_missing_zstandard_is_one_line_with_the_install_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt.zst"
    path.write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(UserError, match=r"pip install 'bertline\[zstd\]'"):
        _blocks(path)
