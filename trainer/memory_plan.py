"""How much memory a rank will take, before anything is started: counted states, and activations measured in small.

What ZeRO keeps where is counted from the number of parameters (Rajbhandari et al. 2020, section 5). Activations are
measured: a model of the same shape but few layers runs one row on this machine's processor while every tensor that
autograd saves is added up, and the difference a layer makes is taken times the recipe's layers and tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.config import ModelConfig
from trainer.model.bert import IGNORED_LABEL
from trainer.model.create import create_model

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_FP32_BYTES = 4
_MEASURED_LAYERS = (2, 3)
# Bytes an element of the bucket, by (half precision, ZeRO stage).
_COMMUNICATION_BYTES = {
    (False, 0): 4.0,
    (False, 1): 6.0,
    (False, 2): 6.0,
    (False, 3): 6.0,
    (True, 1): 6.4,
    (True, 2): 8.4,
    (True, 3): 10.0,
}


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes a rank by what they are for; `peak_bytes` is their sum."""

    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    communication_bytes: int
    activations_bytes: int
    logits_bytes: int
    program_bytes: int

    @property
    def peak_bytes(self) -> int:
        """What the rank takes at most: in the middle of a step, when nothing of this has been let go."""
        return sum(vars(self).values())


@dataclass(frozen=True)
class MicroBatch:
    """One micro-batch of a rank: `tokens` real ones in documents of about `document_tokens`, `predicted` of them."""

    tokens: int
    document_tokens: int
    predicted: int


def plan_memory(
    model: ModelConfig,
    *,
    micro_batch: MicroBatch,
    precision: str,
    zero_stage: int,
    dp_world_size: int,
    bucket_elements: int,
    program_bytes: int,
    candidates: int | None = None,
) -> MemoryPlan:
    """The plan of the fullest rank; runs a few layers of the model in this process. `model.vocab_size` is set.

    `bucket_elements` bounds what is flattened for one collective, `program_bytes` is what a process takes before it
    has a model (0 where the memory of a GPU is meant), `candidates` the sequences of one pair prediction, if any.
    """
    parameters = count_parameters(model, candidates=candidates)
    states = _states(
        parameters,
        half=precision != "fp32",
        zero_stage=zero_stage,
        dp_world_size=dp_world_size,
        bucket=min(parameters, bucket_elements),
    )
    activations, logits = measure_activations(model, micro_batch=micro_batch, precision=precision)
    return MemoryPlan(**states, activations_bytes=activations, logits_bytes=logits, program_bytes=program_bytes)


def _states(parameters: int, *, half: bool, zero_stage: int, dp_world_size: int, bucket: int) -> dict[str, int]:
    """Bytes of weights, gradients, optimiser and communication on one rank.

    AdamW's two moments and, under ZeRO, an fp32 copy of the weights are the optimiser's. What the engine flattens
    and copies for its collectives was measured (DeepSpeed 0.19.8, 33 M weights, 1 and 2 processes) in bytes an element
    of the bucket.
    """
    shares = 1 if zero_stage == 0 else dp_world_size
    width = 2 if half else _FP32_BYTES
    split_weights, split_gradients = zero_stage == 3, zero_stage >= 2
    weights = parameters * width // (dp_world_size if split_weights else 1)
    gradients = parameters * width
    if half:
        gradients += parameters * _FP32_BYTES // (dp_world_size if split_gradients else 1)
    elif split_weights:
        gradients += parameters * _FP32_BYTES // dp_world_size
    moments_and_copy = 8 if zero_stage == 0 else 12
    # Stage 3 brings the weights that it works with together again.
    gathered = bucket * width if split_weights else 0
    return {
        "weights_bytes": weights,
        "gradients_bytes": gradients,
        "optimizer_bytes": parameters * moments_and_copy // shares,
        "communication_bytes": int(bucket * _COMMUNICATION_BYTES[half, zero_stage]) + gathered,
    }


def count_parameters(model: ModelConfig, *, candidates: int | None = None) -> int:
    """Weights of the encoder and its pretraining heads; tied ones count once."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in create_model(model, seed=0, candidates=candidates).parameters())


def measure_activations(model: ModelConfig, *, micro_batch: MicroBatch, precision: str) -> tuple[int, int]:
    """Bytes that the backward pass needs of a micro-batch: (activations of all layers, logits with their gradients)."""
    tokens = min(micro_batch.tokens, max(micro_batch.document_tokens, 512))
    documents = max(1, tokens // micro_batch.document_tokens)
    length = min(micro_batch.document_tokens, model.max_positions)
    few, more = (
        _saved_bytes(
            model.model_copy(update={"num_layers": layers}),
            documents=documents,
            length=length,
            precision=precision,
        )
        for layers in _MEASURED_LAYERS
    )
    a_layer = more - few
    whole = few + a_layer * (model.num_layers - _MEASURED_LAYERS[0])
    vocab = model.vocab_size or 0
    # log-softmax saves its output; going back, the gradients of that and of the logits stand beside it.
    logits = 3 * _FP32_BYTES * micro_batch.predicted * vocab
    return max(0, whole * micro_batch.tokens // (documents * length)), logits


def _saved_bytes(model: ModelConfig, *, documents: int, length: int, precision: str) -> int:
    """Bytes of the distinct tensors that autograd saves of one forward pass without predictions, weights left out."""
    network = create_model(model, seed=0).to(_DTYPES[precision])
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        kept.append(tensor)  # or another tensor would get its address
        return tensor

    kept: list[Tensor] = []
    ids = torch.from_numpy(np.repeat(np.arange(1, documents + 1, dtype=np.int32), length)[None])
    positions = torch.arange(length, dtype=torch.int32).repeat(documents)[None]
    tokens = torch.full_like(ids, 5)
    labels = torch.full(ids.shape, IGNORED_LABEL, dtype=torch.int64)
    unpack: Callable[[Tensor], Tensor] = lambda tensor: tensor  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(note, unpack):
        output = network(tokens, positions, ids, labels)
    del output
    return sum(saved.values())
