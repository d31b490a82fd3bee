import resource
from pathlib import Path

import pytest
import torch

from trainer import memory
from trainer.memory import peak_memory_gib, present_memory_bytes


def test_the_peak_on_a_cpu_is_the_largest_resident_set_in_gib(monkeypatch, tmp_path):
    status = tmp_path / "status"
    status.write_text("Name: x\nVmHWM:\t 3145728 kB\nVmRSS:\t 1048576 kB\n")
    monkeypatch.setattr(memory, "_STATUS", status)
    assert peak_memory_gib(torch.device("cpu")) == 3.0
    assert present_memory_bytes() == 1 << 30


@pytest.mark.parametrize(("platform", "maxrss"), [("linux", 3 << 20), ("darwin", 3 << 30)])
def test_elsewhere_the_system_tells_in_its_own_unit(monkeypatch, platform, maxrss):
    class Usage:
        ru_maxrss = maxrss

    monkeypatch.setattr(memory, "_STATUS", Path("/no/such/file"))
    monkeypatch.setattr(resource, "getrusage", lambda _: Usage)
    monkeypatch.setattr("sys.platform", platform)
    assert peak_memory_gib(torch.device("cpu")) == 3.0


def test_the_peak_grows_with_what_is_used():
    before = peak_memory_gib(torch.device("cpu"))
    block = torch.ones(1 << 26)  # 256 MiB
    assert block.sum() > 0
    assert peak_memory_gib(torch.device("cpu")) >= max(before, 0.25)
