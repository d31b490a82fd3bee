"""Where a fine-tuning run starts: shape, weights and tokenizer of a run, of an imported or a Hugging Face folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from data_pipeline.tokenizer import train_tokenizer
from trainer.checkpoint import CheckpointStore
from trainer.config import ModelConfig, TokenizerConfig
from trainer.encoder_config import BiLSTMConfig, EncoderConfig
from trainer.errors import UserError
from trainer.export import open_encoder
from trainer.finetune_config import FineTuneConfig, StartConfig
from trainer.imported import MODEL_FILE, load_imported
from trainer.model.hf_import import import_hf
from trainer.prepare import resolve_package_path
from trainer.run_folder import CONFIG_FILE
from trainer.tasks.text_tokenizer import SETTINGS_FILE, TOKENIZER_FILE, VOCABULARY_FILE

TOKENIZER_DIR = "tokenizer"
_TOKENIZER_FILES = (
    "spiece.model",
    "bertline_tokenizer.json",
    TOKENIZER_FILE,
    VOCABULARY_FILE,
    SETTINGS_FILE,
    "special_tokens_map.json",
)


@dataclass(frozen=True)
class Start:
    """A trained encoder: its shape, its weights by parameter name, and the folder of its tokenizer."""

    model: ModelConfig
    weights: Mapping[str, Tensor]
    tokenizer: Path


def open_start(config: FineTuneConfig) -> Start | None:
    """What the recipe's start.path names, None where the recipe asks for new weights; every rank reads it itself."""
    start = config.start
    if start.path is None:
        return None
    folder = Path(resolve_package_path(start.path, key="start.path"))
    found = _open_folder(folder, start)
    if config.data.max_length > found.model.max_positions:
        raise UserError(
            f"data.max_length={config.data.max_length} is longer than the {found.model.max_positions} positions of "
            f"{folder}; shorten the sequences"
        )
    return found


def _open_folder(folder: Path, start: StartConfig) -> Start:
    if (folder / CONFIG_FILE).is_file():
        run_model, run_weights, _ = open_encoder(folder, which=start.checkpoint)
        return Start(run_model, run_weights, folder / TOKENIZER_DIR)
    if start.checkpoint != "auto":
        raise UserError(f"start.checkpoint is for run folders, and {folder} is none; remove it")
    if (folder / MODEL_FILE).is_file():
        imported = load_imported(folder)
        return Start(imported.config, imported.weights, imported.tokenizer)
    if (folder / "config.json").is_file():
        model, weights, _ = import_hf(folder)
        return Start(model, weights, folder)
    raise UserError(
        f"start.path: {folder} is neither a run folder ({CONFIG_FILE}), nor an imported one ({MODEL_FILE}), nor a "
        "Hugging Face folder (config.json)"
    )


def prepare_tokenizer(start: Start | None, *, config: FineTuneConfig, texts: Iterable[str]) -> Path:
    """The tokenizer in the run folder: copied, or trained on the training texts; one process calls it.

    A run that goes on keeps the one that it was begun with.
    """
    folder = config.run_dir / TOKENIZER_DIR
    if CheckpointStore(config.run_dir / "checkpoints").steps():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if start is None:
        _train_tokenizer(config, texts, folder=folder)
        return folder
    for name in _TOKENIZER_FILES:
        if (start.tokenizer / name).is_file():
            shutil.copyfile(start.tokenizer / name, folder / name)
    return folder


def _train_tokenizer(config: FineTuneConfig, texts: Iterable[str], *, folder: Path) -> None:
    settings = config.start.tokenizer or TokenizerConfig()
    with tempfile.NamedTemporaryFile("w", suffix=".txt", dir=folder, encoding="utf-8") as file:
        file.writelines(f"{' '.join(text.split())}\n" for text in texts)
        file.flush()
        try:
            train_tokenizer([file.name], out=folder, **settings.model_dump(), progress=False)
        except UserError as error:
            message = str(error)
            for option in ("vocab-size", "character-coverage"):
                message = message.replace(f"--{option} ", f"start.tokenizer.{option.replace('-', '_')}=")
            raise UserError(message) from error


def with_dropout(model: EncoderConfig, dropout: float | None) -> EncoderConfig:
    """The shape with the encoder's dropout rates replaced, unless `dropout` is None."""
    if dropout is None:
        return model
    if isinstance(model, BiLSTMConfig):
        return model.model_copy(update={"dropout": dropout})
    return model.model_copy(update={"hidden_dropout": dropout, "attention_dropout": dropout})
