"""The one description of a job, made of recipe, site profile and options, from which every launcher's line follows."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.profile import Profile, load_profile
from trainer.config import Config
from trainer.errors import UserError
from trainer.phases import plan_all_batches
from trainer.recipe import RECIPES_DIR, load_recipe
from trainer.topology import Topology


@dataclass(frozen=True)
class JobSpec:
    """A training run over hosts.

    recipe: an absolute path, or the name of a recipe that comes along. profile_source: likewise the profile's, None
    for none. processes: how many on each host. workdir: the folder, at the same path on every host, in which the
    trainer runs.
    """

    recipe: str
    overrides: tuple[str, ...]
    config: Config
    profile: Profile
    profile_source: str | None
    processes: tuple[int, ...]
    workdir: Path

    @property
    def world_size(self) -> int:
        return sum(self.processes)

    @property
    def run_dir(self) -> Path:
        """The run folder, as an absolute path."""
        return self.workdir / self.config.run_dir

    @property
    def python(self) -> str:
        return self.profile.python or sys.executable

    @property
    def trainer_arguments(self) -> list[str]:
        """What follows `python -m`."""
        settings = [part for override in self.overrides for part in ("--set", override)]
        return ["trainer", "pretrain", self.recipe, *settings]


def describe_job(
    recipe: str, *, overrides: Sequence[str], profile: str | None, processes: Sequence[int], workdir: Path
) -> JobSpec:
    """Check recipe, profile and layout and put the job together; UserError for what could not start."""
    site = load_profile(profile) if profile else Profile()
    config = load_recipe(recipe, overrides=overrides)
    check_layout(config, world_size=sum(processes))
    is_file = (workdir / recipe).is_file() and not (RECIPES_DIR / f"{recipe}.yaml").is_file()
    return JobSpec(
        recipe=str((workdir / recipe).resolve()) if is_file else recipe,
        overrides=tuple(overrides),
        config=config,
        profile=site,
        profile_source=str(workdir / profile) if profile and (workdir / profile).is_file() else profile,
        processes=tuple(processes),
        workdir=workdir,
    )


def check_layout(config: Config, *, world_size: int) -> None:
    """Raise UserError where stages or batches of the recipe cannot be dealt over so many processes."""
    stages = config.parallel.num_stages
    try:
        topology = Topology(0, local_rank=0, world_size=world_size, local_world_size=world_size, num_stages=stages)
        plan_all_batches(config, dp_world_size=topology.dp_world_size)
    except UserError as error:
        raise UserError(f"{world_size} processes do not fit the recipe: {error}") from None
