"""What a run shows in TensorBoard beside its scalars: charts that belong together, settings with scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# Chart titles and the tags on them; TensorBoard matches each tag from its beginning against these expressions.
_CHARTS = {
    "Learning": {
        "loss, trained and held out (nats)": [r"(train|validation)/loss(_(?!scale$).*)?$"],
        "accuracy, held out": [r"validation/accuracy"],
        "learning rate": [r"train/learning_rate$"],
        "gradient norm, before clipping": [r"train/grad_norm$"],
    },
    "Machine": {
        "speed (tokens/s)": [r"throughput/tokens_per_sec$"],
        "share of the devices' matmul peak": [r"throughput/mfu$"],
        "memory, at most (GiB)": [r"memory/peak_gib$"],
        "waiting for data (s)": [r"time/data_wait_s$"],
    },
    "Ranks": {
        "a step (s)": [r"ranks/step_s/"],
        "forward pass of a micro-batch (s)": [r"ranks/forward_s/"],
        "waiting for data, each rank (s)": [r"ranks/data_wait_s/"],
        "slowest rank": [r"ranks/slowest$"],
        "its forward pass over the median": [r"ranks/slowest_over_median$"],
        "restarts": [r"ranks/restarts$"],
    },
    "Layers": {
        "norms of weights": [r"layers/weight_norm/"],
        "norms of first moments": [r"layers/moment_norm/"],
    },
}


def custom_layout(*, layer_norms: bool) -> dict[str, dict[str, list[Any]]]:
    """The page "Custom scalars", as `SummaryWriter.add_custom_scalars` takes it."""
    return {
        page: {title: ["Multiline", tags] for title, tags in charts.items()}
        for page, charts in _CHARTS.items()
        if page != "Layers" or layer_norms
    }


def hyperparameters(settings: Mapping[str, Any]) -> dict[str, bool | float | str]:
    """A resolved recipe as the page "HParams" takes it: `a.b` for nested settings, text for lists; None is left out."""
    return dict(_flat(settings, prefix=""))


def _flat(settings: Mapping[str, Any], *, prefix: str) -> Iterator[tuple[str, bool | float | str]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, prefix=f"{prefix}{key}.")
        elif isinstance(value, (bool, int, float, str)):
            yield f"{prefix}{key}", value
        elif value:
            yield f"{prefix}{key}", str(value)
