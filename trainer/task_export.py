"""From a fine-tuned run to a folder that `transformers` or ONNX Runtime loads, its head included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.config import ModelConfig
from trainer.errors import UserError
from trainer.export import EXPORT_DIRS, Form
from trainer.model.hf_export import export_hf
from trainer.model.onnx_export import export_onnx
from trainer.task_model import load_trained
from trainer.task_start import TOKENIZER_DIR
from trainer.tasks.exported import PaddedTaskModel, class_suffix, hf_head, label_settings


def export_task(run_dir: Path, *, which: str, out: Path | None = None, form: Form = "hf") -> Path:
    """Export a fine-tuned run's checkpoint, by default into the run folder; one process calls it.

    UserError, with the reason, for a head that has no such form.
    """
    trained = load_trained(run_dir, which=which)
    if not isinstance(trained.shape, ModelConfig):
        raise UserError(
            f"{run_dir} has a BiLSTM for its encoder, which no other program takes; predict with the run itself"
        )
    if trained.shape.family != "bert":
        raise UserError(f"{run_dir} is of model.family={trained.shape.family}; export its encoder alone by --encoder")
    target = out or run_dir / EXPORT_DIRS[form]
    max_length = trained.config.data.max_length
    common: dict[str, Any] = {"tokenizer_folder": run_dir / TOKENIZER_DIR, "max_seq_len": max_length, "out": target}
    labels = trained.task.labels
    if form == "hf":
        weights = dict(trained.model.named_parameters())
        head = hf_head(trained.config, weights, labels=labels)
        own = {"encoder.": "encoder.", "head.pooler.": "pooler."}
        kept = {
            new + name.removeprefix(old): weight
            for name, weight in weights.items()
            for old, new in own.items()
            if name.startswith(old)
        }
        export_hf(kept, config=trained.shape, head=head, **common)
        return target
    suffix = class_suffix(trained.config)
    export_onnx(
        PaddedTaskModel(trained.model),
        config=trained.shape,
        output_names=PaddedTaskModel.output_names,
        suffix=suffix,
        settings=label_settings(trained.config, labels=labels),
        **common,
    )
    return target
