"""Going on from a checkpoint: which one, whether it fits the recipe, and what has changed since it was saved."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from trainer.checkpoint import CheckpointStore
from trainer.checkpoint_files import CheckpointReader
from trainer.config import Config, RunConfig
from trainer.errors import UserError
from trainer.strict_model import StrictModel

Resume = Literal["auto", "never", "ignore"]
# What says where a run is and reads, not what it computes.
_NOT_TOLD = ("name", "runs_dir", "data.prepared", "data.text", "data.shards", "data.cache", "data.sources", "export")


def find_checkpoint(checkpoints: CheckpointStore, *, resume: Resume, report: Callable[[str], None]) -> Path | None:
    """The newest whole checkpoint, None for a new run; UserError with `never` where there is any.

    `ignore` is for what saves nothing, so that checkpoints of a run may be there.
    """
    if resume == "ignore":
        return None
    if resume == "never":
        if checkpoints.steps():
            raise UserError(
                f"{checkpoints.folder} already holds checkpoints and --resume is never; give the run another name "
                "(--set name=...), or move the folder away"
            )
        return None
    return checkpoints.newest_whole(report=report)


def check_optimizer(config: RunConfig, source: CheckpointReader) -> None:
    """Raise UserError where a checkpoint lacks the state of the recipe's optimiser."""
    if source.state["config"].get("checkpoint", {}).get("weights_only"):
        raise UserError(
            f"{source.folder} holds weights only (checkpoint.weights_only=true), so no run can go on from it; evaluate "
            "or export it, or start a new run under another name"
        )
    saved_optimizer = source.state["config"]["optimizer"]["name"]
    if saved_optimizer != config.optimizer.name:
        raise UserError(
            f"{source.folder} holds the state of optimizer.name={saved_optimizer}, the recipe names "
            f"{config.optimizer.name}; restore the recipe, or start a new run under another name"
        )


def check_fits(config: Config, source: CheckpointReader) -> None:
    """Raise UserError where no run can go on from the checkpoint, or not one of this recipe."""
    check_optimizer(config, source)
    if model := model_changes(source.state["config"]["model"], config.model):
        raise UserError(
            f"{source.folder} was made with another model (model.{'; model.'.join(model)}); restore the recipe, or "
            "start a new run under another name"
        )
    if source.state["step"] > config.train.steps:
        raise UserError(
            f"{source.folder} is past train.steps={config.train.steps}; raise it to train on, or start a new run "
            "under another name"
        )


def model_changes(saved: Mapping[str, Any], now: StrictModel) -> list[str]:
    """What differs between two models' shapes, in the form of `changes`; dropout may."""
    return [change for change in changes(_with_defaults(saved, now), now.model_dump()) if "dropout" not in change]


def describe_changes(config: RunConfig, source: CheckpointReader, *, world_size: int) -> str | None:
    """One line of what differs from the run that saved the checkpoint and takes effect now; None if nothing does."""
    saved, now = _with_defaults(source.state["config"], config), config.model_dump()
    told = [change for change in changes(saved, now) if change.split(" ")[0] not in _NOT_TOLD]
    told += changes({"processes": source.state["world_size"]}, {"processes": world_size})
    return f"changed since step {source.state['step']}: {'; '.join(told)}" if told else None


def changes(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`a.b old → new` for every value that differs between two nested mappings."""
    before, after = dict(_flat(saved)), dict(_flat(now))
    return [
        f"{key} {before.get(key)} → {after.get(key)}"
        for key in {**before, **after}
        if before.get(key) != after.get(key)
    ]


def _with_defaults(saved: Mapping[str, Any], now: StrictModel) -> dict[str, Any]:
    """A saved section, where what the version that saved it did not know has its default."""
    filled = dict(saved)
    for name, field in type(now).model_fields.items():
        value = getattr(now, name)
        if name not in filled:
            if not field.is_required():
                default = field.get_default(call_default_factory=True)
                filled[name] = default.model_dump() if isinstance(default, StrictModel) else default
        elif isinstance(value, StrictModel) and isinstance(filled[name], Mapping):
            filled[name] = _with_defaults(filled[name], value)
    return filled


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
