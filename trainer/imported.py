"""An imported model on disk: the shape, the weights and the tokenizer files of a Hugging Face folder in our names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from trainer.checkpoint_files import write_json
from trainer.config import ModelConfig
from trainer.errors import UserError
from trainer.model.export_folder import export_folder
from trainer.model.hf_import import ImportedModel, import_hf
from trainer.model.safetensors_file import write_safetensors

MODEL_FILE = "model.json"
WEIGHTS_FILE = "weights.safetensors"
TOKENIZER_DIR = "tokenizer"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


@dataclass(frozen=True)
class StoredModel:
    """What an imported folder holds."""

    config: ModelConfig
    weights: Mapping[str, Tensor]
    tokenizer: Path


def import_to(source: Path, *, out: Path) -> ImportedModel:
    """Read a Hugging Face BERT folder and write it to `out`, whole or not at all; one process calls it."""
    if out.exists():
        raise UserError(f"{out} exists; name a folder that does not, or remove it")
    imported = import_hf(source)
    with export_folder(out) as partial:
        (partial / TOKENIZER_DIR).mkdir()
        weights = {name: weight.contiguous() for name, weight in imported.weights.items()}
        write_safetensors(partial / WEIGHTS_FILE, weights)
        for name in _TOKENIZER_FILES:
            if (source / name).exists():
                shutil.copyfile(source / name, partial / TOKENIZER_DIR / name)
        write_json(partial / MODEL_FILE, imported.config.model_dump())
    return imported


def load_imported(folder: Path) -> StoredModel:
    """Read what `import_to` wrote; UserError when the folder is none or is damaged."""
    try:
        config = ModelConfig(**json.loads((folder / MODEL_FILE).read_text(encoding="utf-8")))
        weights = load_file(folder / WEIGHTS_FILE)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder} is no whole imported model ({error}); import it again") from error
    return StoredModel(config=config, weights=weights, tokenizer=folder / TOKENIZER_DIR)
