"""The learning rate over a run's steps as a picture and as a sketch in text."""

from __future__ import annotations

from pathlib import Path

from trainer.config import Config
from trainer.errors import UserError
from trainer.schedule import learning_rate

_POINTS = 2000
_COLUMNS = 64
_ROWS = 8


def schedule_points(config: Config, *, points: int) -> list[tuple[int, float]]:
    """(step, learning rate) of at most `points` steps, the first and the last among them, as if all were applied."""
    total = config.train.steps
    count = min(points, total)
    steps = sorted({1 + round(number * (total - 1) / max(count - 1, 1)) for number in range(count)})
    peak = config.optimizer.learning_rate
    return [
        (step, learning_rate(config.schedule, peak=peak, applied_steps=step - 1, total_steps=total)) for step in steps
    ]


def sketch_schedule(config: Config) -> str:
    """The curve in a few lines of text: the peak's height at the top, steps from left to right."""
    rates = [rate for _, rate in schedule_points(config, points=_COLUMNS)]
    peak = config.optimizer.learning_rate
    label = f"{peak:.3g}"
    lines = []
    for row in range(_ROWS, 0, -1):
        margin = label if row == _ROWS else "0" if row == 1 else ""
        # A column reaches into a row when it fills more than half of it.
        columns = "".join("█" if rate / peak * _ROWS > row - 0.5 else " " for rate in rates)
        lines.append(f"{margin:>{len(label)}} │{columns}".rstrip())
    last = f"step {config.train.steps}"
    axis = f"step 1{last:>{max(len(rates) - len('step 1'), len(last) + 1)}}"
    return "\n".join([f"{config.schedule.name} schedule of the learning rate", *lines, f"{'':>{len(label)}}  {axis}"])


def plot_schedule(config: Config, *, out: Path) -> None:
    """Draw the curve into a PNG file; UserError where that cannot be."""
    if out.suffix != ".png":
        raise UserError(f"--plot {out}: the picture is a PNG file; name it {out.with_suffix('.png')}")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("--plot needs the package matplotlib; pip install 'bertline[plots]'") from None
    steps, rates = zip(*schedule_points(config, points=_POINTS), strict=True)
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot(
        xlabel="applied step", ylabel="learning rate", title=f"{config.name}: {config.schedule.name}"
    )
    axes.plot(steps, rates)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    try:
        figure.savefig(out, dpi=120)
    except OSError as error:
        raise UserError(f"--plot {out}: {error.strerror}; name a file in a folder that is there") from error
