"""Finding where a NaN or an infinity came from, without waiting for the device on every step."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

_BLOCKS = re.compile(r"(^|\.)(embeddings|layers\.\d+)$")
_NEVER = 1 << 62


class NonFiniteWatch:
    """Notes on the device at which step each block's output, the losses and each block's gradient left the numbers.

    A block is the embeddings or one layer. Its output and the gradient at it are summed once a micro-batch, which
    keeps a NaN and an infinity: a fraction of what the block itself reads. Made before the engine, on every rank.
    """

    def __init__(self, module: nn.Module, *, device: torch.device) -> None:
        blocks = [(name, block) for name, block in module.named_modules() if _BLOCKS.search(name)]
        # In the order in which a step computes them.
        self._places = [f"the output of {name}" for name, _ in blocks]
        self._places += ["the loss", *(f"the gradient at the output of {name}" for name, _ in reversed(blocks))]
        self._sums = torch.zeros(len(self._places), dtype=torch.float32, device=device)
        self._first = torch.full((len(self._places),), _NEVER, dtype=torch.int64, device=device)
        for number, (_, block) in enumerate(blocks):
            block.register_forward_hook(self._hook(number))

    def _hook(self, number: int) -> Callable[[nn.Module, Any, Tensor], None]:
        def note_output(block: nn.Module, inputs: Any, output: Tensor) -> None:
            if block.training:
                self._sums[number] += output.detach().sum(dtype=torch.float32)
                if output.requires_grad:
                    output.register_hook(note_gradient)  # type: ignore[no-untyped-call]

        def note_gradient(gradient: Tensor) -> None:
            self._sums[-1 - number] += gradient.sum(dtype=torch.float32)

        return note_output

    def end_step(self, step: int, *, losses: Tensor, applied: bool) -> None:
        """Close step `step` (counted from 1), whose summed losses these are.

        Gradients count where they were `applied`: fp16's scaled ones overflow now and then, and that is no fault.
        """
        middle = len(self._places) // 2
        self._sums[middle] = losses.sum()
        bad = ~self._sums.isfinite() & (self._first == _NEVER)
        if not applied:
            bad[middle + 1 :] = False
        self._first.masked_fill_(bad, step)
        self._sums.zero_()

    def locate(self) -> str | None:
        """The first step, the lowest rank and the earliest place in its computation; collective, waits for all."""
        firsts: list[list[int]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(firsts, self._first.tolist())
        step = min(first for of_rank in firsts for first in of_rank)
        if step == _NEVER:
            return None
        rank = next(rank for rank, of_rank in enumerate(firsts) if step in of_rank)
        return f"first seen at step {step} on rank {rank} in {self._places[firsts[rank].index(step)]}"
