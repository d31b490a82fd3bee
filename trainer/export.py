"""From a run's checkpoint to a folder that `transformers` or ONNX Runtime loads."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from trainer.checkpoint import CheckpointStore
from trainer.checkpoint_files import CheckpointReader, find_damage
from trainer.config import Config, ModelConfig
from trainer.errors import UserError
from trainer.finetune_config import FineTuneConfig
from trainer.imported import MODEL_FILE, TOKENIZER_DIR, load_imported
from trainer.model.hf_export import class_suffix, export_hf
from trainer.model.hf_names import HEAD_PARTS
from trainer.model.hf_seq2seq import WritingSettings, export_encoder_decoder
from trainer.model.onnx_export import export_onnx
from trainer.model.padded import PaddedPretrained, PretrainedModel
from trainer.model.weights import load_weights
from trainer.run_folder import load_any_run, load_run
from trainer.seq2seq_config import Seq2SeqConfig
from trainer.tasks.lora import merge_lora
from trainer.tasks.text_tokenizer import load_texts

Form = Literal["hf", "onnx"]
EXPORT_DIRS: dict[Form, str] = {"hf": "export", "onnx": "export-onnx"}


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


def plain_weights(checkpoint: CheckpointReader, config: FineTuneConfig) -> dict[str, Tensor]:
    """A fine-tuned checkpoint's weights by name, adapters merged into the projections that they correct."""
    weights = checkpoint.evaluation_weights()
    return weights if config.train.lora is None else merge_lora(weights, config=config.train.lora)


def open_encoder(run_dir: Path, *, which: str) -> tuple[ModelConfig, dict[str, Tensor], int]:
    """Shape, weights and row length of a run of either kind; of a fine-tuned one the encoder without its head."""
    config = load_any_run(run_dir)
    if isinstance(config, FineTuneConfig) and config.start.encoder == "bilstm":
        raise UserError(
            f"{run_dir} has a BiLSTM for its encoder, which neither Hugging Face nor another run takes; use it as it is"
        )
    checkpoint = choose_checkpoint(run_dir, which=which)
    if isinstance(config, Config):
        return config.model, checkpoint.evaluation_weights(), config.data.max_seq_len
    weights = plain_weights(checkpoint, config)
    names = {name: name.removeprefix("head.") for name in weights if name.startswith(("encoder.", "head.pooler."))}
    kept = {own: weights[name] for name, own in names.items()}
    return ModelConfig(**checkpoint.state["model"]), kept, config.data.max_length


@dataclass(frozen=True)
class Exportable:
    """An encoder with what else was pretrained: shape, weights by name, tokenizer folder and row length."""

    model: ModelConfig
    weights: Mapping[str, Tensor]
    tokenizer: Path
    max_seq_len: int


def open_exportable(run_dir: Path, *, which: str) -> Exportable:
    """A run's checkpoint, of a fine-tuned one the encoder without its head, or an imported model."""
    if not (run_dir / MODEL_FILE).exists():
        model, weights, max_seq_len = open_encoder(run_dir, which=which)
        return Exportable(model, weights, run_dir / "tokenizer", max_seq_len)
    if which != "auto":
        raise UserError(f"{run_dir} is an imported model, which has no checkpoint {which!r}; leave --checkpoint out")
    stored = load_imported(run_dir)
    return Exportable(stored.config, stored.weights, stored.tokenizer, stored.config.max_positions)


def _export_encoder_decoder(
    config: FineTuneConfig, task: Seq2SeqConfig, run_dir: Path, *, which: str, out: Path
) -> None:
    checkpoint = choose_checkpoint(run_dir, which=which)
    tokenizer = load_texts(run_dir / TOKENIZER_DIR)
    export_encoder_decoder(
        plain_weights(checkpoint, config),
        config=ModelConfig(**checkpoint.state["model"]),
        tokenizer_folder=run_dir / TOKENIZER_DIR,
        out=out,
        max_seq_len=config.data.max_length,
        writing=WritingSettings(
            start_id=tokenizer.cls_id,
            end_id=tokenizer.sep_id,
            max_length=task.target_length or config.data.max_length,
            beams=task.beams,
        ),
    )


def export_checkpoint(run_dir: Path, *, which: str, out: Path | None = None, form: Form = "hf") -> Path:
    """Export a run's checkpoint or an imported model, by default into the run folder; one process calls it."""
    target = out or run_dir / EXPORT_DIRS[form]
    config = None if (run_dir / MODEL_FILE).exists() else load_any_run(run_dir)
    if isinstance(config, FineTuneConfig) and isinstance(config.task, Seq2SeqConfig):
        if form != "hf":
            raise UserError(f"{run_dir} writes texts step by step, which is no ONNX model; export with --format hf")
        _export_encoder_decoder(config, config.task, run_dir, which=which, out=target)
        return target
    source = open_exportable(run_dir, which=which)
    tokenizer: dict[str, Any] = {"tokenizer_folder": source.tokenizer, "max_seq_len": source.max_seq_len}
    if form == "hf":
        export_hf(source.weights, config=source.model, out=target, **tokenizer)
        return target
    if source.model.family != "bert":
        raise UserError(f"{run_dir} is of model.family={source.model.family}; only BERT's layers are exported to ONNX")
    parts = [part for part in HEAD_PARTS if any(name.startswith(f"{part}.") for name in source.weights)]
    model = PretrainedModel(source.model, parts)
    load_weights(model, source.weights, source=str(run_dir))
    padded = PaddedPretrained(model)
    export_onnx(
        padded,
        config=source.model,
        output_names=padded.output_names,
        suffix=class_suffix(source.weights),
        settings={},
        out=target,
        **tokenizer,
    )
    return target
