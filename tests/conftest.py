"""How the tests are spread over pytest's workers, which `make test` starts one a core."""

from __future__ import annotations

from pathlib import Path

import pytest

_HERE = Path(__file__).parent


def pytest_itemcollected(item: pytest.Item) -> None:
    """Keep tests of several processes on one worker, one after the other, and those of a file together.

    Before pytest_collection_modifyitems, in which the workers already read the groups.
    """
    place = item.path.relative_to(_HERE)
    name = place.as_posix() if place.parts[0] == "unit" else "several processes"
    item.add_marker(pytest.mark.xdist_group(name))
