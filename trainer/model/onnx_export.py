"""A model over padded texts as an ONNX file."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer.config import ModelConfig
from trainer.errors import UserError
from trainer.model.encoder import vocab_size
from trainer.model.export_folder import MARK, check_out, export_folder
from trainer.model.hf_config import Suffix, to_hf_config
from trainer.model.hf_tokenizer import export_tokenizer

MODEL_FILE = "model.onnx"
INPUT_NAMES = ("input_ids", "attention_mask", "token_type_ids")
_PACKAGES = ("onnx", "onnxscript")


def export_onnx(
    model: nn.Module,
    *,
    config: ModelConfig,
    output_names: Sequence[str],
    suffix: Suffix,
    settings: Mapping[str, Any],
    tokenizer_folder: Path,
    out: Path,
    max_seq_len: int,
) -> None:
    """Write model.onnx, config.json and the tokenizer into `out`, whole or not at all; one process calls it.

    `model` takes `INPUT_NAMES`, int64 [batch, sequence] of any sizes up to `config.max_positions`, and gives a tuple
    of `output_names`. `suffix` names the class of Hugging Face's that has the same outputs, `settings` go into
    config.json. A former export in `out` is replaced; UserError for anything else there, or a missing package.
    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(f"an ONNX export needs the package {missing[0]}; pip install 'bertline[onnx]'")
    check_out(out)
    with export_folder(out) as partial:
        pieces = export_tokenizer(tokenizer_folder, out=partial, max_seq_len=max_seq_len)
        if pieces is not None and pieces > vocab_size(config):
            raise UserError(
                f"the model has vocab_size={config.vocab_size} but {tokenizer_folder} has {pieces} pieces: not its "
                "tokenizer"
            )
        content = to_hf_config(config, suffix=suffix, dtype="float32") | dict(settings) | MARK
        (partial / "config.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        _write(model, partial / MODEL_FILE, output_names=output_names, max_positions=config.max_positions)


def _write(model: nn.Module, path: Path, *, output_names: Sequence[str], max_positions: int) -> None:
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=max_positions)}
    # A tensor of its own for each: one in two places is taken for one input.
    examples = tuple(torch.ones((2, min(7, max_positions)), dtype=torch.int64) for _ in INPUT_NAMES)
    with _quiet():
        torch.onnx.export(
            model.float().cpu().eval(),
            examples,
            path,
            input_names=list(INPUT_NAMES),
            output_names=list(output_names),
            dynamic_shapes=(sizes,) * len(INPUT_NAMES),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of its own parts, on standard error."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
