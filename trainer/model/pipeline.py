"""The encoder as DeepSpeed's PipelineModule: the plain model's own parameters, those of this rank's stage."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from deepspeed.pipe import PipelineModule, TiedLayerSpec
from torch import Tensor, nn

from trainer.model.bert import BertForMaskedLanguageModel
from trainer.model.loss_term import LossTerm
from trainer.model.pipeline_stage import Stage

LossFunction = Callable[[dict[str, LossTerm], Any], Tensor]


class _Word(nn.Module):
    """The word embedding as DeepSpeed's tied layers need it: a module that holds it."""

    def __init__(self, word: nn.Embedding) -> None:
        super().__init__()
        self.word = word


class EncoderPipeline(PipelineModule):  # type: ignore[misc]
    """Stages of a model, cut at `bounds` (see `pipeline_balance`); every rank makes it, of equal weights.

    Each rank's stage keeps the model's own Parameter objects, the others' are let go. The word embedding is held by
    the first stage, which looks words up, and by the last, whose head decodes by it: a copy there.
    """

    def __init__(self, model: BertForMaskedLanguageModel, *, bounds: Sequence[int], loss: LossFunction) -> None:
        stages = [Stage(model, first=first, last=last) for first, last in itertools.pairwise(bounds)]
        # The layer that is tied passes its input on: stage and head already compute with the tied matrix.
        tied = TiedLayerSpec(
            "word", _Word, model.encoder.embeddings.word, forward_fn=_pass_on, tied_weight_attr="word.weight"
        )
        # Both holders are given one value here, which is no step that gradients could flow through.
        with torch.no_grad():
            super().__init__([tied, *stages, tied], num_stages=len(stages), loss_fn=loss)
        # It would keep the other stages' weights in memory.
        self._layer_specs: list[Any] = []

    def _partition_layers(self, method: str) -> None:
        """One of the stages for each rank, the tied layers with the first and the last: nothing left to balance."""
        self.parts = [0, *range(2, self.num_stages + 1), self.num_stages + 2]
        self._set_bounds(start=self.parts[self.stage_id], stop=self.parts[self.stage_id + 1])


def _pass_on(_: nn.Module, inputs: Any) -> Any:
    return inputs


def is_copy(parameter: nn.Parameter) -> bool:
    """Whether this rank's parameter is the last stage's copy of one that the first stage holds."""
    return bool(getattr(parameter, "ds_pipe_replicated", False))
