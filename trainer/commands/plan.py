"""`trainer plan`: memory, time and cost of each layout of a recipe on devices that need not be there."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from trainer.commands.arguments import Commands, add_recipe
from trainer.errors import UserError
from trainer.recipe import load_recipe

_SUFFIXES = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_GPU_EFFICIENCY = 0.5


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser("plan", help="foretell memory, time and cost of each layout on so many devices")
    add_recipe(parser)
    parser.add_argument(
        "--gpus", required=True, metavar="NAME:COUNT", help="h100:64, say; cpu:2 measures this machine's processor"
    )
    parser.add_argument(
        "--network", type=float, default=400.0, metavar="GBIT", help="Gbit/s of a device to other machines [400]"
    )
    parser.add_argument("--tokens", metavar="N", help="tokens to train on, 100B say [those of the recipe]")
    parser.add_argument("--price", type=float, metavar="P", help="of a device and hour: adds what the tokens cost")
    parser.add_argument(
        "--efficiency",
        type=float,
        metavar="SHARE",
        help="of the matmul peak, within forward and backward passes; `trainer profile` measures it "
        f"[{_GPU_EFFICIENCY}; measured for cpu]",
    )
    parser.add_argument(
        "--measured",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="also set the plan beside what `trainer profile` wrote there; may be given several times",
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    name, count = _devices(options.gpus)
    tokens = None if options.tokens is None else _number(options.tokens)
    _check_positive(options)
    measured = {str(folder): _read_figures(folder) for folder in options.measured}
    config = load_recipe(options.recipe, overrides=options.overrides)
    from trainer.layout_plan import longest_phase, plan_layouts
    from trainer.plan_text import compare, describe_plan

    if config.phases:
        config = longest_phase(config)
        print(f"of the recipe's phases, the one of {config.train.steps:,} steps of rows of {config.data.max_seq_len}")
    plan = plan_layouts(config, **_hardware(options, name=name, count=count, config=config))
    print("\n".join(describe_plan(plan, tokens=tokens, price=options.price)))
    for source, figures in measured.items():
        print(compare(plan, figures, source=source))
    return 0


def _hardware(options: argparse.Namespace, *, name: str, count: int, config: Any) -> dict[str, Any]:
    """What `plan_layouts` is told of the devices."""
    from trainer.check import expected_micro_batch
    from trainer.device_figures import device_figures
    from trainer.half_precision import half_precisions
    from trainer.processor_figures import measure_efficiency, processor_figures
    from trainer.runtime import started_process_bytes
    from trainer.time_model import Hardware

    wanted = config.engine.precision
    network_rate = options.network * 1e9 / 8
    if name != "cpu":
        device = device_figures(name)
        precision = wanted if wanted != "auto" else "bf16" if "bf16" in device.peak_flops else "fp32"
        if precision not in device.peak_flops:
            raise UserError(f"engine.precision={wanted}: {name} has none; use {' or '.join(device.peak_flops)}")
        efficiency = options.efficiency or _GPU_EFFICIENCY
        return {"hardware": Hardware(device, count, network_rate, efficiency), "precision": precision}
    precision = "fp32" if wanted == "auto" else wanted
    if precision not in ("fp32", *half_precisions("cpu")):
        raise UserError(f"engine.precision={wanted}: this processor has no {wanted} arithmetic; use fp32")
    resolved, micro_batch = expected_micro_batch(config)
    efficiency = options.efficiency or measure_efficiency(
        resolved.model,
        documents=micro_batch.documents,
        precision=precision,
        recompute=config.parallel.activation_checkpointing,
        processes=count,
    )
    hardware = Hardware(processor_figures(count, precision=precision), count, network_rate, efficiency)
    return {"hardware": hardware, "precision": precision, "program_bytes": started_process_bytes()}


def _devices(text: str) -> tuple[str, int]:
    found = re.fullmatch(r"([A-Za-z0-9-]+):([1-9]\d*)", text)
    if found is None:
        raise UserError(f"--gpus {text}: not of the form NAME:COUNT, as in --gpus h100:64")
    return found[1].lower(), int(found[2])


def _number(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?)([KMBT]?)", text)
    if found is None or float(found[1]) == 0:
        raise UserError(f"--tokens {text}: not a number of tokens, as in --tokens 100B, 2.5T or 3e9")
    return float(found[1]) * _SUFFIXES[found[2]]


def _check_positive(options: argparse.Namespace) -> None:
    if options.network <= 0:
        raise UserError(f"--network {options.network:g}: must be above 0, in Gbit/s")
    if options.price is not None and options.price < 0:
        raise UserError(f"--price {options.price:g}: must not be below 0")
    if options.efficiency is not None and not 0 < options.efficiency <= 1:
        raise UserError(f"--efficiency {options.efficiency:g}: must be above 0 and at most 1")


def _read_figures(folder: Path) -> dict[str, Any]:
    path = folder / "figures.json"
    if not path.is_file():
        raise UserError(f"--measured {folder}: there is no {path.name}; name a folder that `trainer profile` wrote")
    figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return figures
