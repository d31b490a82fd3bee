import re

import pytest
from tensorboard.backend.event_processing.event_accumulator import TENSORS, EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata

from trainer.metrics import TENSORBOARD_DIR, MetricsWriter
from trainer.tensorboard_page import custom_layout, hyperparameters


def reload(run_dir):
    events = EventAccumulator(str(run_dir / TENSORBOARD_DIR), size_guidance={TENSORS: 0})
    events.Reload()
    return events


def charts(**settings):
    return {title: tags for page in custom_layout(**settings).values() for title, (_, tags) in page.items()}


@pytest.mark.parametrize(
    ("tag", "title"),
    [
        ("train/loss", "loss, trained and held out (nats)"),
        ("validation/loss", "loss, trained and held out (nats)"),
        ("train/loss_mlm", "loss, trained and held out (nats)"),
        ("train/loss_scale", None),
        ("validation/accuracy", "accuracy, held out"),
        ("train/learning_rate", "learning rate"),
        ("train/grad_norm", "gradient norm, before clipping"),
        ("throughput/tokens_per_sec", "speed (tokens/s)"),
        ("memory/peak_gib", "memory, at most (GiB)"),
        ("layers/weight_norm/layer_00", "norms of weights"),
        ("layers/moment_norm/head", "norms of first moments"),
        ("ranks/step_s/0003", "a step (s)"),
        ("ranks/forward_s/0003", "forward pass of a micro-batch (s)"),
        ("ranks/data_wait_s/0003", "waiting for data, each rank (s)"),
        ("ranks/slowest", "slowest rank"),
        ("ranks/slowest_over_median", "its forward pass over the median"),
        ("ranks/restarts", "restarts"),
        ("train/tokens", None),
    ],
)
def test_a_figure_is_in_the_chart_it_belongs_to_and_in_no_other(tag, title):
    found = [name for name, tags in charts(layer_norms=True).items() if any(re.match(each, tag) for each in tags)]
    assert found == ([title] if title else [])


def test_layers_have_charts_only_where_their_norms_are_written():
    assert set(custom_layout(layer_norms=True)) - set(custom_layout(layer_norms=False)) == {"Layers"}


def test_the_layout_is_on_disk_with_the_run(tmp_path):
    MetricsWriter(tmp_path, is_main=True, resume_step=0).close()
    event = reload(tmp_path).Tensors("custom_scalars__config__")[0]
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == ["Learning", "Machine", "Ranks"]
    loss = layout.category[0].chart[0]
    assert (loss.title, list(loss.multiline.tag)) == (
        "loss, trained and held out (nats)",
        [r"(train|validation)/loss(_(?!scale$).*)?$"],
    )


def test_a_recipe_becomes_flat_hyperparameters():
    settings = {"a": 1, "b": {"c": "x", "d": {"e": 1e-4, "f": None}}, "g": [1, 2], "h": [], "i": True}
    assert hyperparameters(settings) == {"a": 1, "b.c": "x", "b.d.e": 1e-4, "g": "[1, 2]", "i": True}


def test_settings_and_scores_stand_in_the_run_s_own_folder(tmp_path):
    with MetricsWriter(tmp_path, is_main=True, resume_step=0) as writer:
        writer.write_hyperparameters({"model": {"num_layers": 2}}, scores={"validation/loss": 1.5})
    assert [path.name.split(".")[0] for path in (tmp_path / TENSORBOARD_DIR).iterdir()] == ["events"]
    content = reload(tmp_path).SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    assert metadata.parse_session_start_info_plugin_data(content).hparams["model.num_layers"].number_value == 2
    content = reload(tmp_path).SummaryMetadata(metadata.EXPERIMENT_TAG).plugin_data.content
    experiment = metadata.parse_experiment_plugin_data(content)
    assert [each.name.tag for each in experiment.metric_infos] == ["validation/loss"]


def test_a_text_is_shown_at_its_step(tmp_path):
    with MetricsWriter(tmp_path, is_main=True, resume_step=0, clock=lambda: 2.5) as writer:
        writer.write_text("examples", "| a |", step=7)
    event = reload(tmp_path).Tensors("examples/text_summary")[0]
    assert (event.step, event.wall_time, event.tensor_proto.string_val[0]) == (7, 2.5, b"| a |")


def test_other_ranks_show_nothing(tmp_path):
    with MetricsWriter(tmp_path / "run", is_main=False, resume_step=0) as writer:
        writer.write_text("examples", "| a |", step=7)
        writer.write_hyperparameters({"a": 1}, scores={"b": 1.0})
    assert list(tmp_path.iterdir()) == []
