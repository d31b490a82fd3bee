"""What the collectives of a step send, counted where they are called: bytes by kind, and their time as a part."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Work

from trainer.part_clock import COMMUNICATION, STAGE_WAIT, PartClock


class _Call(NamedTuple):
    """A method of a process group: which argument holds the whole of the data, None where nothing is sent.

    rounds: how often a ring of n ranks passes (n - 1) / n of it on, so that each rank has sent as much; 0 for what
    one rank sends whole.
    """

    kind: str
    data: int | None
    rounds: int = 1


# The names of the present torch (2.13) and of those since 2.9.
_CALLS = {
    "allreduce": _Call("all-reduce", 0, rounds=2),
    "allreduce_coalesced": _Call("all-reduce", 0, rounds=2),
    "allgather": _Call("all-gather", 0),
    "allgather_coalesced": _Call("all-gather", 0),
    "all_gather_single": _Call("all-gather", 0),
    "_allgather_base": _Call("all-gather", 0),
    "all_gather_single_coalesced": _Call("all-gather", 0),
    "allgather_into_tensor_coalesced": _Call("all-gather", 0),
    "reduce_scatter": _Call("reduce-scatter", 1),
    "reduce_scatter_single": _Call("reduce-scatter", 1),
    "_reduce_scatter_base": _Call("reduce-scatter", 1),
    "reduce_scatter_single_coalesced": _Call("reduce-scatter", 1),
    "reduce_scatter_tensor_coalesced": _Call("reduce-scatter", 1),
    "broadcast": _Call("broadcast", 0),
    "reduce": _Call("reduce", 0),
    "gather": _Call("gather", 1),
    "scatter": _Call("scatter", 0),
    "barrier": _Call("barrier", None),
    "send": _Call("send", 0, rounds=0),
    "recv": _Call("receive", None),
}
KINDS = tuple(dict.fromkeys(call.kind for call in _CALLS.values() if call.data is not None))
_BETWEEN_STAGES = ("send", "recv")


@contextmanager
def counted_collectives(clock: PartClock) -> Iterator[dict[str, float]]:
    """Count what this rank sends inside the body, in bytes by kind of collective, and time the calls and the waits.

    Every call of torch's process groups is seen, DeepSpeed's too. Bytes are those of a ring: of data of S bytes that
    n ranks hold in the end each has sent S (n - 1) / n, twice that in an all-reduce (Thakur et al. 2005, section 4).
    Sends between pipeline stages are the part "stage wait", all else is "communication".
    """
    sent: dict[str, float] = defaultdict(float)
    parts_of_works: dict[int, str] = {}
    # As the classes hold them: what getattr gives would no longer be a method once it is put back.
    originals = {(owner, name): vars(owner)[name] for owner, name in _patched()}

    def counting(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        call = _CALLS[name]
        part = STAGE_WAIT if name in _BETWEEN_STAGES else COMMUNICATION

        def counted(group: Any, *arguments: Any, **options: Any) -> Any:
            if call.data is not None:
                sent[call.kind] += _sent_bytes(call, arguments[call.data], ranks=group.size())
            with clock.part(part):
                work = original(group, *arguments, **options)
            parts_of_works[id(work)] = part
            return work

        return counted

    def wait(work: Any, *arguments: Any) -> Any:
        with clock.part(parts_of_works.get(id(work), COMMUNICATION)):
            return originals[Work, "wait"](work, *arguments)

    try:
        for (owner, name), original in originals.items():
            setattr(owner, name, wait if owner is Work else counting(name, original))
        yield sent
    finally:
        for (owner, name), original in originals.items():
            setattr(owner, name, original)


def _patched() -> list[tuple[type, str]]:
    return [(Work, "wait"), *((dist.ProcessGroup, name) for name in _CALLS if name in vars(dist.ProcessGroup))]


def _sent_bytes(call: _Call, data: Any, *, ranks: int) -> float:
    size = _bytes_of(data)
    return size if call.rounds == 0 else call.rounds * size * (ranks - 1) / ranks


def _bytes_of(data: Any) -> float:
    """Of a tensor, or of all in lists of tensors."""
    if isinstance(data, torch.Tensor):
        return float(data.numel() * data.element_size())
    return sum(map(_bytes_of, data))
