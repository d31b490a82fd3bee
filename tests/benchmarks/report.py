"""What a benchmark found, as aligned tables and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

_WIDTH = 110
_NAME_WIDTH = 52


@dataclass(frozen=True)
class Figure:
    """One number that is wanted: at least `target`, or at most `limit`, where there is one."""

    name: str
    value: float
    target: float | None = None
    unit: str = "×"
    limit: float | None = None

    @property
    def verdict(self) -> str:
        """`met`, `missed`, or nothing where nothing is asked."""
        if self.target is None and self.limit is None:
            return ""
        enough = self.target is None or self.value >= self.target
        return "met" if enough and (self.limit is None or self.value <= self.limit) else "missed"

    @property
    def wanted(self) -> str:
        """What is asked, with its unit, or nothing."""
        bounds = {"≥": self.target, "≤": self.limit}
        return " ".join(f"{sign} {_number(bound)} {self.unit}" for sign, bound in bounds.items() if bound is not None)


@dataclass(frozen=True)
class Outcome:
    """One benchmark: every contender's rate in every round, in `unit` a second, and the figures drawn from them."""

    title: str
    unit: str
    rates: dict[str, list[float]]
    figures: tuple[Figure, ...]
    remarks: tuple[str, ...] = ()


def print_report(machine: Mapping[str, str], outcomes: Iterable[Outcome]) -> None:
    """Print the machine, then two tables a benchmark: what was measured, and what it means."""
    console = Console(width=_WIDTH, highlight=False, markup=False)
    for key, value in machine.items():
        console.print(f"{key:<10}{value}", soft_wrap=True)
    for outcome in outcomes:
        console.print(f"\n{outcome.title}", style="bold")
        for remark in outcome.remarks:
            console.print(remark)
        console.print(_rates_table(outcome))
        console.print()
        console.print(_figures_table(outcome))


def as_json(machine: Mapping[str, str], outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """The same as plain values, each figure with its verdict."""
    return {
        "machine": dict(machine),
        "benchmarks": [
            {
                **asdict(outcome),
                "medians": {name: median(rates) for name, rates in outcome.rates.items()},
                "figures": [{**asdict(figure), "verdict": figure.verdict} for figure in outcome.figures],
            }
            for outcome in outcomes
        ],
    }


def _rates_table(outcome: Outcome) -> Table:
    table = _table("measured", f"{outcome.unit}/s, median", "lowest", "highest")
    for name, rates in outcome.rates.items():
        values = (median(rates), min(rates), max(rates))
        table.add_row(name, *(f"{value:,.0f}" for value in values))
    return table


def _figures_table(outcome: Outcome) -> Table:
    table = _table("figure", "value", "target", "")
    for figure in outcome.figures:
        table.add_row(figure.name, f"{_number(figure.value)} {figure.unit}", figure.wanted, figure.verdict)
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 2))
    table.add_column(first, width=_NAME_WIDTH, no_wrap=True)
    for other in others:
        table.add_column(other, justify="right", no_wrap=True)
    return table


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
