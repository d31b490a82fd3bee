"""Whether a tar's own headers say what its index says, for stock readers go by the headers alone."""

from __future__ import annotations

import tarfile
from itertools import zip_longest
from pathlib import Path

from data_pipeline.shards import ShardIndex, member_name


def structure_damage(path: Path, index: ShardIndex, *, first_block: int) -> str | None:
    """The first place where headers and index part, or what is wrong with the tar's end; None when all is well.

    `first_block` is the number, within the split, of the tar's first block.
    """
    expected = [
        (member_name(first_block + block, field=field), int(index.offset[field][block]), int(index.size[field][block]))
        for block in range(len(index.block_tokens))
        for field in index.offset
    ]
    try:
        with tarfile.open(path, "r:") as archive:
            found = [(member.name, member.offset_data, member.size) for member in archive]
            end = archive.offset
    except tarfile.TarError as error:
        return f"the tar's structure is damaged: {error}"
    for was, wanted in zip_longest(found, expected):
        if was != wanted:
            return f"the member (name, offset, size) is {was}, where the index says {wanted}"
    return _end_damage(path, end=end)


def _end_damage(path: Path, *, end: int) -> str | None:
    """Behind the last member, which ends at `end`, a tar has two blocks of zeros, filled up to a record of zeros."""
    size = path.stat().st_size
    expected = -(-(end + 2 * tarfile.BLOCKSIZE) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE
    if size != expected:
        return f"the size is {size} bytes, where a tar of these members has {expected}"
    with path.open("rb") as file:
        file.seek(end)
        if any(file.read()):
            return "something lies behind the tar's last member"
    return None
