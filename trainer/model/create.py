"""A new model's weights, and how an optimiser groups them."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

from trainer.config import ModelConfig
from trainer.model.bert import BertForMaskedLanguageModel
from trainer.model.pretraining import BertForPreTraining


def create_model(
    config: ModelConfig,
    *,
    seed: int,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    candidates: int | None = None,
) -> BertForMaskedLanguageModel:
    """A model on the CPU whose weights are a pure function of (config, seed); torch's global generator is untouched.

    It has a pair head where a pair prediction is made from so many `candidates`. Every rank calls it and gets the
    same weights. UserError where `config.vocab_size` is not set.
    """
    with torch.random.fork_rng(devices=[]):
        extra = {"label_smoothing": label_smoothing, "z_loss": z_loss}
        model = (
            BertForMaskedLanguageModel(config, **extra)
            if candidates is None
            else BertForPreTraining(config, candidates=candidates, **extra)
        )
    initialize_weights(model, std=config.initializer_range, seed=seed)
    return model


@torch.no_grad()
def initialize_weights(model: nn.Module, *, std: float, seed: int) -> None:
    """Draw matrices and embeddings from N(0, std), set biases to 0 and norms to 1 (Devlin et al. 2019, code).

    Each weight has a generator of its own, keyed by its name: what a process does not hold changes nothing.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            key = hashlib.sha256(f"{seed}/{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little"))
            parameter.normal_(0.0, std, generator=generator)
        else:
            parameter.fill_(0.0 if "bias" in name.rpartition(".")[2] else 1.0)


def parameter_groups(model: nn.Module, *, weight_decay: float, muon: bool = False) -> list[dict[str, Any]]:
    """Optimiser groups "decay" (matrices, embeddings) and "no_decay" (biases, norms), in the model's own order.

    With `muon`, the matrices of the encoder's layers form a third one, "muon", marked by muon=True, and come first.
    """
    # By name, not by shape: ZeRO-3 flattens the weights of a model made under its `zero.Init`.
    matrices: list[nn.Parameter] = []
    decay: list[nn.Parameter] = []
    no_decay: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.endswith(".bias") or "norm." in name:
            no_decay.append(parameter)
        else:
            (matrices if muon and ".layers." in name else decay).append(parameter)
    groups: list[dict[str, Any]] = [
        {"name": "decay", "params": decay, "weight_decay": weight_decay},
        {"name": "no_decay", "params": no_decay, "weight_decay": 0.0},
    ]
    return (
        [{"name": "muon", "params": matrices, "weight_decay": weight_decay, "muon": True}, *groups] if muon else groups
    )
