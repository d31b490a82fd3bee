"""`trainer evaluate`: a run's held-out loss beside what no context would reach."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from data_pipeline.corpus import open_corpus, open_folder
from data_pipeline.tokenizer import Tokenizer
from trainer.checkpoint_files import CheckpointReader
from trainer.config import Config
from trainer.errors import UserError
from trainer.evaluate import EvaluationResult, UnigramBaseline, plain_eval_step
from trainer.export import open_checkpoint
from trainer.model.create import create_model
from trainer.model.weights import load_weights
from trainer.places import remote_scheme
from trainer.prepare import local_shards
from trainer.setup import validation_for


@dataclass(frozen=True)
class RunEvaluation:
    """One checkpoint's result on the recipe's held-out rows, and the baseline on the same tokens."""

    checkpoint: Path
    result: EvaluationResult
    baseline: UnigramBaseline


def _trained_on(config: Config, checkpoint: CheckpointReader, *, run_dir: Path) -> list[str]:
    """The shards of the run: their place on the network, else the folder that they were in, or were moved to."""
    return [
        source.shards
        if source.shards is not None and remote_scheme(source.shards) is not None
        else _present_folder(folder, run_dir=run_dir)
        for source, folder in zip(config.data.all_sources, checkpoint.state["shards"], strict=True)
    ]


def _present_folder(folder: str, *, run_dir: Path) -> str:
    """The folder, or the same one in the run folder's own data, where shards made from text lie and move with it."""
    moved = run_dir / "data" / Path(folder).parent.name / Path(folder).name
    for place in (Path(folder), moved):
        if place.is_dir():
            return str(place)
    raise UserError(f"{folder}, the shards that the run was trained on, is gone; name where they lie by --shards DIR")


def evaluate_run(run_dir: Path, *, which: str, shards: str | Path | None = None) -> RunEvaluation:
    """Evaluate a checkpoint in this process alone, in fp32; `shards` replaces the folder the run was trained on."""
    config, checkpoint = open_checkpoint(run_dir, which=which)
    places = [shards] if shards else _trained_on(config, checkpoint, run_dir=run_dir)
    folders = [local_shards(place, config) for place in places]
    corpus = open_folder(folders[0]) if shards else open_corpus(config.data.all_sources, folders)
    manifest, folder = corpus.manifest, ", ".join(map(str, places))
    if shards is None and corpus.fingerprint != checkpoint.state["cursor"]["fingerprint"]:
        raise UserError(
            f"{folder} is not what the run was trained on (another fingerprint); name the folder to evaluate on by "
            "--shards DIR if that is meant"
        )
    tokenizer = Tokenizer.load(run_dir / "tokenizer")
    if manifest.tokenizer_sha256 != tokenizer.sha256:
        raise UserError(
            f"{folder} was built with another tokenizer (sha256 {manifest.tokenizer_sha256[:12]}) than {run_dir} was "
            f"trained with ({tokenizer.sha256[:12]}); build the text with --tokenizer {tokenizer.folder}"
        )
    validation = validation_for(config, corpus)
    if validation is None:
        raise UserError(f"{run_dir}: its recipe sets evaluation: null, so there are no held-out rows to evaluate")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = create_model(config.model, seed=config.seed, candidates=config.objective.candidates)
    load_weights(model, checkpoint.evaluation_weights(), source=str(checkpoint.folder))
    return RunEvaluation(
        checkpoint=checkpoint.folder,
        result=validation.run(plain_eval_step(model.to(device), device=device)),
        baseline=validation.unigram_baseline(vocab_size=manifest.vocab_size),
    )
