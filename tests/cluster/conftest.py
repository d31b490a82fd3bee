"""Three hosts with SLURM, and a recipe that they share."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_site import PROFILE, RECIPE_CHANGES, STEPS, Site
from hosts import Hosts, what_is_missing
from launching import RECIPE, losses, write_corpus
from slurm_cluster import Slurm

from data_pipeline.build import build_shards
from data_pipeline.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def hosts(tmp_path_factory) -> Iterator[Hosts]:
    if missing := what_is_missing():
        pytest.skip(f"no hosts: {missing}")
    with Hosts(tmp_path_factory.mktemp("hosts"), count=3) as made:
        yield made


@pytest.fixture(scope="session")
def slurm(hosts) -> Slurm:
    return Slurm(hosts)


@pytest.fixture(scope="session")
def site(hosts, tmp_path_factory) -> Site:
    folder = tmp_path_factory.mktemp("site")
    corpus = write_corpus(folder / "text.txt", documents=200)
    train_tokenizer([corpus], out=folder / "tokenizer", vocab_size=70, progress=False)
    build_shards(
        [corpus],
        tokenizer=folder / "tokenizer",
        out=folder / "shards",
        workers=1,
        block_tokens=1024,
        validation_fraction=0.05,
        progress=False,
    )
    recipe, profile = folder / "recipe.yaml", folder / "profile.yaml"
    text = RECIPE.format(shards=folder / "shards")
    for old, new in RECIPE_CHANGES.items():
        assert old in text
        text = text.replace(old, new)
    recipe.write_text(text)
    profile.write_text(PROFILE)
    return Site(hosts, folder, recipe, profile, itertools.count(1))


@pytest.fixture(scope="session")
def whole_run(site) -> Path:
    """The run folder of the recipe trained on node1 and node2 without a fault."""
    cwd = site.new_folder("whole")
    hostfile = site.hostfile(cwd, "node1", "node2")
    site.cluster(
        "supervise",
        site.recipe,
        "--hostfile",
        hostfile,
        "--profile",
        site.profile,
        "--no-check",
        "--no-preflight",
        cwd=cwd,
    )
    run_dir = cwd / "runs/run"
    assert len(losses(run_dir / "metrics.jsonl")) == STEPS
    return run_dir
