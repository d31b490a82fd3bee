"""Three hosts with SLURM, and a recipe that they share."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from cluster_site import PROFILE, Site
from hosts import Hosts, what_is_missing
from launching import RECIPE, write_corpus
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
    text = write_corpus(folder / "text.txt", documents=200)
    train_tokenizer([text], out=folder / "tokenizer", vocab_size=70, progress=False)
    build_shards(
        [text],
        tokenizer=folder / "tokenizer",
        out=folder / "shards",
        workers=1,
        block_tokens=1024,
        validation_fraction=0.05,
        progress=False,
    )
    recipe, profile = folder / "recipe.yaml", folder / "profile.yaml"
    recipe.write_text(RECIPE.format(shards=folder / "shards").replace("micro_batch_size: 2", "micro_batch_size: 1"))
    profile.write_text(PROFILE)
    return Site(hosts, folder, recipe, profile, itertools.count(1))
