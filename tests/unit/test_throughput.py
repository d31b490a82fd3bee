import pytest

from trainer.throughput import ThroughputMeter


class FakeClock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def meter(clock):
    return ThroughputMeter(clock=clock)


def test_rates_are_sums_over_the_window_divided_by_its_time(clock, meter):
    for tokens in (900, 700):
        clock.now += 2.0
        meter.add_step(tokens=tokens, positions=1000, flops=6_000)
    assert meter.read(peak_flops=10_000.0) == {
        "throughput/tokens_per_sec": 400.0,
        "data/padding_share": pytest.approx(0.2),
        "time/step_s": 2.0,
        "time/data_wait_s": 0.0,
        "throughput/mfu": 0.3,
    }


def test_a_window_begins_where_the_last_was_read(clock, meter):
    clock.now += 5.0
    meter.add_step(tokens=10, positions=10, flops=1)
    meter.read(peak_flops=None)
    clock.now += 2.0
    meter.add_step(tokens=10, positions=10, flops=1)
    found = meter.read(peak_flops=None)
    assert found["throughput/tokens_per_sec"] == 5.0
    assert "throughput/mfu" not in found


def test_waiting_for_data_is_counted_and_part_of_the_step(clock, meter):
    for _ in range(2):
        with meter.waiting_for_data():
            clock.now += 1.0
        clock.now += 3.0
        meter.add_step(tokens=8, positions=8, flops=1)
    found = meter.read(peak_flops=None)
    assert (found["time/data_wait_s"], found["time/step_s"], found["throughput/tokens_per_sec"]) == (1.0, 4.0, 2.0)


def test_paused_time_does_not_count(clock, meter):
    clock.now += 1.0
    with meter.paused():
        clock.now += 100.0
    clock.now += 1.0
    meter.add_step(tokens=10, positions=10, flops=1)
    assert meter.read(peak_flops=None)["time/step_s"] == 2.0


def test_paused_time_ends_even_when_the_work_inside_fails(clock, meter):
    def evaluate():
        with meter.paused():
            clock.now += 100.0
            raise RuntimeError

    with pytest.raises(RuntimeError):
        evaluate()
    clock.now += 2.0
    meter.add_step(tokens=10, positions=10, flops=1)
    assert meter.read(peak_flops=None)["time/step_s"] == 2.0


def test_a_window_without_steps_has_no_metrics_and_still_ends(clock, meter):
    clock.now += 50.0
    assert meter.read(peak_flops=1.0) == {}
    clock.now += 2.0
    meter.add_step(tokens=10, positions=10, flops=1)
    assert meter.read(peak_flops=None)["time/step_s"] == 2.0
