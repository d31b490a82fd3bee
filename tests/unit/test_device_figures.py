from __future__ import annotations

import pytest
import torch

from trainer.config import ModelConfig
from trainer.device_figures import device_figures
from trainer.errors import UserError
from trainer.processor_figures import measure_efficiency, process_threads, processor_figures


def test_figures_are_those_of_the_data_sheet() -> None:
    h100 = device_figures("h100")
    assert h100.peak_flops == pytest.approx({"fp32": 66.9e12, "bf16": 989.4e12, "fp16": 989.4e12})
    assert (h100.memory_bytes, h100.memory_rate, h100.link_rate) == (80 << 30, 3.35e12, 450e9)
    assert h100.devices_a_machine == 8


def test_a_precision_that_the_device_lacks_has_no_peak() -> None:
    assert set(device_figures("v100").peak_flops) == {"fp32", "fp16"}


@pytest.mark.parametrize(
    ("name", "hint"), [("h10", "did you mean h100?"), ("tpu", "there are cpu, b200, h200, h100, a100")]
)
def test_a_device_without_figures_is_refused(name: str, hint: str) -> None:
    with pytest.raises(UserError, match=rf"--gpus names '{name}', of which there are no figures; ") as error:
        device_figures(name)
    assert hint in str(error.value)


def test_processes_share_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.processor_figures.measure_matmul_peak", lambda *_, seconds: 12e9)
    monkeypatch.setattr("trainer.processor_figures._copy_rate", lambda: 6e9)
    alone, third = processor_figures(1, precision="fp32"), processor_figures(3, precision="fp32")
    assert (alone.peak_flops, third.peak_flops) == ({"fp32": 12e9}, {"fp32": 4e9})
    assert (alone.memory_rate, third.memory_rate) == (6e9, 2e9)
    assert third.memory_bytes == alone.memory_bytes // 3
    assert (third.devices_a_machine, third.name) == (3, "cpu")


def test_processes_get_the_threads_that_a_run_gives_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(6))
    assert [process_threads(count) for count in (1, 2, 4, 8)] == [6, 3, 1, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert process_threads(2) == torch.get_num_threads()


def test_efficiency_is_flops_over_the_peak_and_leaves_the_threads_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr("trainer.processor_figures.measure_matmul_peak", lambda *_, seconds: 1e15)
    shape = ModelConfig(hidden_size=16, num_layers=2, num_heads=2, intermediate_size=32, vocab_size=50)
    plain = measure_efficiency(shape, documents=(40, 24), precision="fp32", recompute=False, processes=2)
    assert 0 < plain < 1e-3
    assert torch.get_num_threads() == before
