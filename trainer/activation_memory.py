"""What a micro-batch takes beside weights and gradients: measured, by running a few layers of it in this process.

On a processor that is more than what autograd saves: attention goes through documents length by length, and its
odd-sized tensors, made and dropped between those that the backward pass needs, leave holes in the heap. So where
memory is the resident set it is measured as such, holes and all; for other devices the saved tensors are added up.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainer.config import ModelConfig
from trainer.memory import peak_memory_gib, present_memory_bytes
from trainer.model.create import create_model

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_MEASURED_LAYERS = (2, 3)
_RESIDENT_TOKENS = 4096
# What is saved is the same for every token but for the lengths of documents.
_SAVED_TOKENS = 512
_MEASURED_VOCABULARY = 8
# One position in so many has a label, as many as the usual mask rate chooses; the last layer computes these alone.
LABEL_EVERY = 7
_MEASURED_STEPS = 3
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): sets VmHWM to what is resident now
_GIB = 1 << 30

Step = Callable[[int], Tensor]


@dataclass(frozen=True)
class Activations:
    """Bytes of one micro-batch: of a whole encoder layer, and of all else, logits left out.

    The rest may be less than nothing: the last layer computes predicted positions only, and counts as a whole one.
    """

    a_layer: int
    outside: int

    def of_layers(self, layers: int) -> int:
        """Bytes of so many layers and all else."""
        return self.a_layer * layers + self.outside

    def scaled(self, factor: float) -> Activations:
        """What `factor` times as many tokens take."""
        return Activations(a_layer=round(self.a_layer * factor), outside=round(self.outside * factor))


def measure_activations(
    model: ModelConfig, *, documents: Sequence[int], precision: str, resident: bool, recompute: bool = False
) -> Activations:
    """What documents of these lengths take in a forward and backward pass.

    A part of the tokens goes through two and through three layers, and is scaled to all tokens. `resident`: measured
    as memory of this process, where the system tells it, rather than as saved tensors. `recompute`: with layers that
    keep their input only.
    """
    resident = resident and _CLEAR_REFS.exists()
    taken, tokens = (resident_bytes, _RESIDENT_TOKENS) if resident else (saved_bytes, _SAVED_TOKENS)
    lengths = sample_lengths(documents, tokens=min(sum(documents), tokens))
    sizes = {}
    for layers in sorted({min(layers, model.num_layers) for layers in _MEASURED_LAYERS}):
        small = model.model_copy(update={"num_layers": layers, "vocab_size": _MEASURED_VOCABULARY})
        sizes[layers] = taken(training_step(small, lengths=lengths, precision=precision, recompute=recompute))
    few, more = min(sizes), max(sizes)
    a_layer = (sizes[more] - sizes[few]) // max(1, more - few)
    scale = sum(documents) / sum(lengths)
    return Activations(a_layer=max(0, round(a_layer * scale)), outside=round((sizes[more] - a_layer * more) * scale))


def sample_lengths(lengths: Sequence[int], *, tokens: int) -> list[int]:
    """About so many tokens of documents whose lengths are spread as these are: evenly over them, sorted."""
    count = max(1, round(tokens * len(lengths) / sum(lengths)))
    ordered = sorted(lengths)
    return [ordered[(2 * place + 1) * len(lengths) // (2 * count)] for place in range(count)]


def resident_bytes(step: Step) -> int:
    """How much the resident set of this process grows at most in some steps, after a first one that warms up.

    A step gives the loss, which is taken back through it.
    """
    torch.autograd.backward(step(0))
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    before = present_memory_bytes()
    _CLEAR_REFS.write_text(_RESET_PEAK)
    for number in range(1, _MEASURED_STEPS + 1):
        torch.autograd.backward(step(number))
    return max(0, round(peak_memory_gib(torch.device("cpu")) * _GIB) - before)


def saved_bytes(step: Step) -> int:
    """Bytes of the distinct tensors that autograd saves on the way to a step's loss, parameters left out."""
    saved: dict[int, int] = {}
    kept: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter) and not isinstance(tensor._base, torch.nn.Parameter):
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            kept.append(tensor)  # or another tensor would get its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = step(0)
    del loss
    return sum(saved.values())


def training_step(model: ModelConfig, *, lengths: Sequence[int], precision: str, recompute: bool) -> Step:
    """A forward pass of a new model in training over documents of these lengths, its number taken off each.

    A label stands on every position in LABEL_EVERY.
    """
    network = create_model(model, seed=0).to(_DTYPES[precision])
    network.encoder.recompute = recompute
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def step(number: int) -> Tensor:
        # Other lengths in every batch, as in training: holes of one fit few tensors of the next.
        own = [max(1, length - number) for length in lengths]
        ids = torch.from_numpy(np.repeat(np.arange(1, len(own) + 1, dtype=np.int32), own)[None])
        positions = torch.from_numpy(np.concatenate([np.arange(length, dtype=np.int32) for length in own])[None])
        tokens = torch.full_like(ids, 5)
        labels = torch.where(torch.arange(ids.shape[1]) % LABEL_EVERY == 0, 5, -100)[None]
        terms = network(tokens, positions, ids, labels)
        return torch.stack([term.loss for term in terms.values()]).sum()

    return step
