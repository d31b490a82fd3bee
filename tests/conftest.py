"""How the tests are spread over pytest's workers, which `make test` starts one a core."""

from __future__ import annotations

import pytest
from xdist.scheduler import LoadScopeScheduling


class ByFile(LoadScopeScheduling):
    """A file of unit tests at a time; the tests of several processes on one worker, one after the other."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return file if file.startswith("tests/unit/") else "several processes"


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByFile:
    """xdist's hook, called where there are workers."""
    return ByFile(config, log)
