"""From a run's checkpoint to a folder that `transformers` loads."""

from __future__ import annotations

import importlib.util
import sys
from functools import partial
from pathlib import Path

from torch import Tensor

from trainer.checkpoint import CheckpointStore
from trainer.checkpoint_files import CheckpointReader, find_damage
from trainer.config import Config, ModelConfig
from trainer.errors import UserError
from trainer.finetune_config import FineTuneConfig, TaskDataConfig
from trainer.imported import MODEL_FILE, TOKENIZER_DIR, load_imported
from trainer.model.hf_export import export_hf
from trainer.model.hf_seq2seq import WritingSettings, export_encoder_decoder
from trainer.run_folder import load_any_run, load_run
from trainer.seq2seq_config import Seq2SeqConfig
from trainer.tasks.text_tokenizer import load_texts

EXPORT_DIR = "export"


def require_export() -> None:
    """Fail now, rather than after days of training, when the export at the end could not be written."""
    if importlib.util.find_spec("tokenizers") is None:
        raise UserError(
            "the export at the end of the run needs the package tokenizers; pip install 'bertline[hf]', or set "
            "export: false and export later"
        )


def open_checkpoint(run_dir: Path, *, which: str) -> tuple[Config, CheckpointReader]:
    """A pretraining run's resolved recipe and one of its checkpoints."""
    return load_run(run_dir), choose_checkpoint(run_dir, which=which)


def choose_checkpoint(run_dir: Path, *, which: str) -> CheckpointReader:
    """One of a run's checkpoints: `auto` is the best by what its recipe evaluates, else the newest."""
    store = CheckpointStore(run_dir / "checkpoints")
    if which != "auto":
        return CheckpointReader(store.named(which))
    # Standard output is for results: `evaluate --json` is read by programs.
    report = partial(print, file=sys.stderr)
    if (best := store.best_step()) is not None:
        damage = find_damage(store.path(best))
        if damage is None:
            return CheckpointReader(store.path(best))
        report(f"the best checkpoint, {store.path(best)}, is damaged: {damage}; taking the newest whole one")
    newest = store.newest_whole(report=report)
    if newest is None:
        raise UserError(f"{store.folder} holds no checkpoint yet; train first")
    return CheckpointReader(newest)


def open_encoder(run_dir: Path, *, which: str) -> tuple[ModelConfig, dict[str, Tensor], int]:
    """Shape, weights and row length of a run of either kind; of a fine-tuned one the encoder without its head."""
    config, checkpoint = load_any_run(run_dir), choose_checkpoint(run_dir, which=which)
    weights = checkpoint.evaluation_weights()
    if isinstance(config, Config):
        return config.model, weights, config.data.max_seq_len
    names = {name: name.removeprefix("head.") for name in weights if name.startswith(("encoder.", "head.pooler."))}
    kept = {own: weights[name] for name, own in names.items()}
    return ModelConfig(**checkpoint.state["model"]), kept, config.data.max_length


def export_checkpoint(run_dir: Path, *, which: str, out: Path | None = None) -> Path:
    """Export a run's checkpoint or an imported model, by default into its `export` folder; one process calls it."""
    if (run_dir / MODEL_FILE).exists():
        if which != "auto":
            raise UserError(
                f"{run_dir} is an imported model, which has no checkpoint {which!r}; leave --checkpoint out"
            )
        return _export_imported(run_dir, out=out or run_dir / EXPORT_DIR)
    target = out or run_dir / EXPORT_DIR
    config = load_any_run(run_dir)
    if isinstance(config, FineTuneConfig) and isinstance(config.task, Seq2SeqConfig):
        _export_encoder_decoder(config.task, config.data, run_dir, which=which, out=target)
        return target
    model, weights, max_seq_len = open_encoder(run_dir, which=which)
    export_hf(weights, config=model, tokenizer_folder=run_dir / "tokenizer", out=target, max_seq_len=max_seq_len)
    return target


def _export_encoder_decoder(task: Seq2SeqConfig, data: TaskDataConfig, run_dir: Path, *, which: str, out: Path) -> None:
    checkpoint = choose_checkpoint(run_dir, which=which)
    tokenizer = load_texts(run_dir / TOKENIZER_DIR)
    export_encoder_decoder(
        checkpoint.evaluation_weights(),
        config=ModelConfig(**checkpoint.state["model"]),
        tokenizer_folder=run_dir / TOKENIZER_DIR,
        out=out,
        max_seq_len=data.max_length,
        writing=WritingSettings(
            start_id=tokenizer.cls_id,
            end_id=tokenizer.sep_id,
            max_length=task.target_length or data.max_length,
            beams=task.beams,
        ),
    )


def _export_imported(folder: Path, *, out: Path) -> Path:
    model = load_imported(folder)
    export_hf(
        model.weights,
        config=model.config,
        tokenizer_folder=model.tokenizer,
        out=out,
        max_seq_len=model.config.max_positions,
    )
    return out
