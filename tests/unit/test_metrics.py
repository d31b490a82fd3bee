import contextlib
import json
import math

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trainer.errors import UserError
from trainer.metrics import METRICS_FILE, TENSORBOARD_DIR, MetricsWriter, drop_records_after, read_records


def write_steps(run_dir, steps, *, resume_step=0, loss=1.0):
    with MetricsWriter(run_dir, is_main=True, resume_step=resume_step, clock=lambda: 12.5) as writer:
        for step in steps:
            writer.write({"train/loss": loss / step}, step=step, applied_steps=step)


def test_a_record_holds_steps_time_and_values_exactly(tmp_path):
    write_steps(tmp_path, [3])
    text = (tmp_path / METRICS_FILE).read_text()
    assert text == '{"step": 3, "applied_steps": 3, "time_s": 12.5, "train/loss": 0.3333333333333333}\n'
    assert read_records(tmp_path / METRICS_FILE)[0]["train/loss"] == 1 / 3


def test_a_record_is_on_disk_before_the_writer_is_closed(tmp_path):
    writer = MetricsWriter(tmp_path, is_main=True, resume_step=0)
    writer.write({"train/loss": 1.0}, step=1, applied_steps=0)
    assert [record["step"] for record in read_records(tmp_path / METRICS_FILE)] == [1]
    writer.close()
    writer.write({"train/loss": 1.0}, step=2, applied_steps=1)
    assert len(read_records(tmp_path / METRICS_FILE)) == 1


def test_a_figure_that_is_no_number_is_null_for_json_has_none(tmp_path):
    with MetricsWriter(tmp_path, is_main=True, resume_step=0) as writer:
        writer.write({"train/loss": math.nan, "train/grad_norm": math.inf}, step=1, applied_steps=0)
    record = read_records(tmp_path / METRICS_FILE)[0]
    assert (record["train/loss"], record["train/grad_norm"]) == (None, None)
    assert "NaN" not in (tmp_path / METRICS_FILE).read_text()


def test_a_figure_of_every_rank_is_a_list_on_disk_and_a_curve_a_rank_in_tensorboard(tmp_path):
    with MetricsWriter(tmp_path, is_main=True, resume_step=0) as writer:
        writer.write({"ranks/step_s": [0.5, math.nan]}, step=1, applied_steps=1)
    assert read_records(tmp_path / METRICS_FILE)[0]["ranks/step_s"] == [0.5, None]
    events = EventAccumulator(str(tmp_path / TENSORBOARD_DIR))
    events.Reload()
    assert events.Tags()["scalars"] == ["ranks/step_s/0000", "ranks/step_s/0001"]


def test_resuming_writes_no_step_twice(tmp_path):
    write_steps(tmp_path, range(1, 8))
    write_steps(tmp_path, range(5, 9), resume_step=4, loss=2.0)
    records = read_records(tmp_path / METRICS_FILE)
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [record["train/loss"] * record["step"] for record in records] == [1.0] * 4 + [2.0] * 4


def test_tensorboard_shows_the_same_values_and_forgets_what_was_cut_off(tmp_path):
    write_steps(tmp_path, range(1, 8))
    write_steps(tmp_path, range(5, 9), resume_step=4, loss=2.0)
    events = EventAccumulator(str(tmp_path / TENSORBOARD_DIR), purge_orphaned_data=True)
    events.Reload()
    scalars = events.Scalars("train/loss")
    assert [scalar.step for scalar in scalars] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [scalar.value * scalar.step for scalar in scalars] == pytest.approx([1.0] * 4 + [2.0] * 4)
    assert {scalar.wall_time for scalar in scalars} == {12.5}


def test_a_run_that_starts_again_from_nothing_leaves_nothing_of_the_old_one(tmp_path):
    write_steps(tmp_path, [1, 2])
    write_steps(tmp_path, [1])
    assert len(read_records(tmp_path / METRICS_FILE)) == 1


@pytest.mark.parametrize("torn", ['{"step": 2, "app', '{"step": 2}', '{"step": 2, "x"\n'])
def test_a_torn_last_line_is_dropped(tmp_path, torn):
    path = tmp_path / METRICS_FILE
    path.write_text('{"step": 1}\n' + torn)
    drop_records_after(path, step=5)
    assert path.read_text() == '{"step": 1}\n'


@pytest.mark.parametrize("broken", ["nonsense", "[1]", '{"no": 1}'])
def test_damage_in_the_middle_is_named_and_left_alone(tmp_path, broken):
    path = tmp_path / METRICS_FILE
    content = '{"step": 1}\n' + broken + '\n{"step": 3}\n'
    path.write_text(content)
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: not a metrics record"):
        MetricsWriter(tmp_path, is_main=True, resume_step=1)
    assert path.read_text() == content


def test_a_file_with_nothing_to_drop_is_not_rewritten(tmp_path):
    path = tmp_path / METRICS_FILE
    path.write_text(json.dumps({"step": 1}) + "\n")
    before = path.stat().st_ino
    drop_records_after(path, step=1)
    assert path.stat().st_ino == before
    drop_records_after(path, step=0)
    assert path.read_text() == ""
    assert [file.name for file in tmp_path.iterdir()] == [METRICS_FILE]


def test_other_ranks_write_nothing(tmp_path):
    with MetricsWriter(tmp_path / "run", is_main=False, resume_step=0) as writer:
        writer.write({"train/loss": 1.0}, step=1, applied_steps=1)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_names_the_file_and_the_step(tmp_path):
    with MetricsWriter(tmp_path, is_main=True, resume_step=0) as writer:
        writer._file = open("/dev/full", "a", encoding="utf-8")  # noqa: PTH123, SIM115 - a disk that is always full
        with pytest.raises(UserError, match=r"/dev/full could not be written at step 3: No space left on device; free"):
            writer.write({"train/loss": 1.0}, step=3, applied_steps=3)
        with contextlib.suppress(OSError):
            writer._file.close()
        writer._file = None


class FullDisk:
    """A record writer whose every record meets a full disk."""

    def write(self, data=None):
        raise OSError(28, "No space left on device")

    flush = close = write


def test_a_full_disk_under_tensorboard_is_named_and_without_a_traceback(tmp_path, capfd):
    writer = MetricsWriter(tmp_path, is_main=True, resume_step=0)
    writer.write({"train/loss": 1.0}, step=1, applied_steps=1)
    (events,) = writer._tensorboard.all_writers.values()
    thread = events.event_writer._async_writer._worker
    thread._record_writer = FullDisk()
    with contextlib.suppress(UserError):
        writer.write({"train/loss": 1.0}, step=2, applied_steps=2)
    thread.join()
    with pytest.raises(UserError, match=r"tensorboard could not be written at step 3: No space left on device; free"):
        writer.write({"train/loss": 1.0}, step=3, applied_steps=3)
    assert capfd.readouterr().err == ""


def test_what_ended_the_run_is_not_hidden_by_a_disk_on_which_nothing_can_be_closed(tmp_path, monkeypatch):
    writer = MetricsWriter(tmp_path, is_main=True, resume_step=0)
    monkeypatch.setattr(writer._tensorboard, "close", FullDisk().flush)
    writer.__exit__(UserError, UserError("the checkpoint could not be written"), None)
    other = MetricsWriter(tmp_path, is_main=True, resume_step=0)
    monkeypatch.setattr(other._tensorboard, "close", FullDisk().flush)
    with pytest.raises(OSError, match="No space left"):
        other.__exit__(None, None, None)
