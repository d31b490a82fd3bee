"""How the tests are spread over pytest's workers, which `make test` starts one a core."""

from __future__ import annotations

import os

import pytest
from xdist.scheduler import LoadScopeScheduling

# Before anything loads PyTorch: threads of two workers that wait for each other by spinning take minutes of the cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"


class ByFile(LoadScopeScheduling):
    """A file of unit tests at a time; the tests of several processes on one worker, one after the other."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return file if file.startswith("tests/unit/") else "several processes"


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByFile:
    """xdist's hook, called where there are workers."""
    return ByFile(config, log)
