"""Low-rank adapters: a trained correction to each chosen projection of an encoder that else stays as it is."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.finetune_config import LoraConfig
from trainer.model.dropout import Dropout
from trainer.tasks.model import TaskModel

_PLACES = {
    "query": "attention",
    "key": "attention",
    "value": "attention",
    "output": "attention",
    "up": "feed_forward",
    "down": "feed_forward",
}
_A, _B = "lora_a", "lora_b"


class LoraLinear(nn.Linear):
    """W x + b + alpha / rank × B A x (Hu et al. 2022), W and b by the names that they have in a plain projection."""

    def __init__(self, base: nn.Linear, *, config: LoraConfig) -> None:
        super().__init__(base.in_features, base.out_features)
        self.scale = config.alpha / config.rank
        self.dropout = Dropout(config.dropout)
        self.lora_a = nn.Parameter(torch.zeros(config.rank, base.in_features))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, config.rank))

    def forward(self, values: Tensor) -> Tensor:
        """[T, input] -> [T, output]."""
        low = F.linear(self.dropout(values), self.lora_a)
        return super().forward(values) + self.scale * F.linear(low, self.lora_b)


def add_lora(model: TaskModel, *, config: LoraConfig) -> None:
    """Put adapters on the chosen projections of every layer, weights still to be set, and freeze the encoder else."""
    for layer in model.encoder.layers:
        for target in config.targets:
            part = layer.get_submodule(_PLACES[target])
            base = part.get_submodule(target)
            assert isinstance(base, nn.Linear)  # the recipe's check: BERT's layers alone have adapters
            setattr(part, target, LoraLinear(base, config=config))
    for name, parameter in model.encoder.named_parameters():
        parameter.requires_grad_(is_adapter(name))


@torch.no_grad()
def start_at_zero(model: TaskModel) -> None:
    """Let every correction be zero, as training begins: B is, and A is what was drawn."""
    for module in model.modules():
        if isinstance(module, LoraLinear):
            module.lora_b.zero_()


def is_adapter(name: str) -> bool:
    """Whether a parameter of that name belongs to an adapter."""
    return name.rpartition(".")[2] in (_A, _B)


def merge_lora(weights: Mapping[str, Tensor], *, config: LoraConfig) -> dict[str, Tensor]:
    """Weights of a plain model that computes the same: W + alpha / rank × B A in the place of W."""
    merged = {name: weight for name, weight in weights.items() if not is_adapter(name)}
    for name in weights:
        projection, _, part = name.rpartition(".")
        if part == _A:
            correction = weights[f"{projection}.{_B}"] @ weights[name]
            merged[f"{projection}.weight"] = merged[f"{projection}.weight"] + config.alpha / config.rank * correction
    return merged
