import resource

import torch

from trainer.memory import peak_memory_gib


def test_the_peak_on_a_cpu_is_the_resident_set_in_gib(monkeypatch):
    class Usage:
        ru_maxrss = 3 * 1024 * 1024

    monkeypatch.setattr(resource, "getrusage", lambda _: Usage)
    monkeypatch.setattr("sys.platform", "linux")
    assert peak_memory_gib(torch.device("cpu")) == 3.0


def test_the_peak_grows_with_what_is_used():
    before = peak_memory_gib(torch.device("cpu"))
    block = torch.ones(1 << 26)  # 256 MiB
    assert block.sum() > 0
    assert peak_memory_gib(torch.device("cpu")) >= max(before, 0.25)
