"""Where a parameter's fp32 master weight and optimiser state lie on this rank, for every ZeRO stage.

DeepSpeed keeps them in flat tensors: one a parameter group and rank at stages 1 and 2, one a subgroup at stage
3, none at stage 0, where the parameter itself is the master. A fragment names a parameter, a range of its
flattened elements and the views that hold this range here. Fragments are what a checkpoint is made of: a
parameter can be put together from them whatever the layout that saved it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

WEIGHT = "weight"
AVERAGE = "ema"


@dataclass(frozen=True)
class EngineState:
    """A rank's part of the training state: 1-D fp32 tensors by `fragment_key`, and what is one value for all ranks."""

    tensors: dict[str, Tensor]
    shared: dict[str, Any]


class StateSource(Protocol):
    """What an engine restores itself from: the state of all ranks of the run that saved it."""

    @property
    def shared(self) -> Mapping[str, Any]: ...

    @property
    def has_average(self) -> bool: ...

    def optimizer_keys(self, name: str) -> list[str]:
        """The optimiser's tensors that are there of a parameter, by key."""
        ...

    def read(self, kind: str, name: str, *, start: int, numel: int) -> Tensor:
        """Elements [start, start + numel) of a flattened parameter's weight or optimiser state, fp32."""
        ...


def fragment_key(kind: str, name: str, start: int) -> str:
    """Name of a saved tensor: what it is (`weight`, `ema` or an optimiser's key), whose, and from which element."""
    return f"{kind}|{name}|{start}"


@dataclass(frozen=True)
class Fragment:
    """`numel` elements of parameter `name` from its flattened element `start`, lying in `flat` from `offset`.

    is_everywhere: every data-parallel rank holds these elements, not this one alone.
    """

    name: str
    start: int
    numel: int
    flat: Tensor
    offset: int
    is_everywhere: bool = False

    def view(self, tensor: Tensor) -> Tensor:
        """This fragment's part of `flat`, or of a tensor that has its shape, as a 1-D view."""
        return tensor.detach().reshape(-1).narrow(0, self.offset, self.numel)


def local_fragments(
    parameters: Mapping[str, nn.Parameter], optimizer: Any, *, zero_stage: int, dp_rank: int
) -> list[Fragment]:
    """The fragments of named parameters that this rank holds; at stage 0 every rank holds all of each.

    `optimizer` is the engine's: DeepSpeed's wrapper at stages 1 to 3, the plain optimiser at stage 0. It knows nothing
    of parameters without gradients: these are their own masters, whole at stages 1 and 2, partitioned at stage 3.
    """
    locate = {0: _whole, 1: _of_flat_group, 2: _of_flat_group, 3: _of_subgroup}[zero_stage]
    locate_frozen = _of_frozen_partition if zero_stage == 3 else _whole
    found = (
        (locate if parameter.requires_grad else locate_frozen)(name, parameter, optimizer, dp_rank)
        for name, parameter in parameters.items()
    )
    return [fragment for fragment in found if fragment is not None]


def _whole(name: str, parameter: nn.Parameter, optimizer: Any, dp_rank: int) -> Fragment:
    return Fragment(name=name, start=0, numel=parameter.numel(), flat=parameter, offset=0, is_everywhere=True)


def _of_flat_group(name: str, parameter: Any, optimizer: Any, dp_rank: int) -> Fragment | None:
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    return Fragment(
        name=name,
        start=mapping.lp_fragment_address.start,
        numel=mapping.lp_fragment_address.numel,
        flat=optimizer.param_groups[mapping.param_group_index]["params"][0],
        offset=mapping.hp_fragment_address.start,
    )


def _of_subgroup(name: str, parameter: Any, optimizer: Any, dp_rank: int) -> Fragment | None:
    group, offset, partition_numel = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start = partition_numel * dp_rank
    # The last partitions are padded up to equal size; padding belongs to no parameter.
    numel = min(partition_numel, parameter.ds_numel - start)
    if numel <= 0:
        return None
    return Fragment(
        name=name, start=start, numel=numel, flat=optimizer.fp32_partitioned_groups_flat[group], offset=offset
    )


def _of_frozen_partition(name: str, parameter: Any, optimizer: Any, dp_rank: int) -> Fragment | None:
    partition = parameter.ds_tensor
    start = partition.ds_numel * dp_rank
    numel = min(partition.ds_numel, parameter.ds_numel - start)
    return Fragment(name=name, start=start, numel=numel, flat=partition, offset=0) if numel > 0 else None


def optimizer_tensors(fragment: Fragment, base_optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Views of the fragment's optimiser state by key, one number an element; empty before the first update.

    What an optimiser keeps besides is its count of updates, or follows from these (the norms that LAMB leaves).
    """
    state = base_optimizer.state.get(fragment.flat, {})
    return {
        key: fragment.view(value)
        for key, value in state.items()
        if torch.is_tensor(value) and value.shape == fragment.flat.shape and value.dim() > 0
    }


def optimizer_scalars(fragments: list[Fragment], base_optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """`step`, the count of updates behind bias correction, which torch keeps by parameter and others by group."""
    places: list[dict[str, Any]] = [*base_optimizer.param_groups]
    places += [base_optimizer.state.get(flat, {}) for flat in distinct_flats(fragments)]
    counts = {float(place["step"]) for place in places if "step" in place}
    if len(counts) > 1:
        raise RuntimeError(f"optimiser state 'step' differs between parameters: {sorted(counts)}")
    return {"step": counts.pop()} if counts else {}


def create_optimizer_state(
    fragments: list[Fragment], base_optimizer: torch.optim.Optimizer, *, source: StateSource
) -> None:
    """Make the state that the optimiser would have made at its first update: zeros, and the count of `source`."""
    scalars = source.shared["optimizer_scalars"]
    groups = base_optimizer.param_groups
    counting_groups = [group for group in groups if "step" in group]
    for group in counting_groups:
        group["step"] = int(scalars.get("step", 0))
    on_device = any(group.get("fused") or group.get("capturable") for group in groups)
    names = {id(fragment.flat): fragment.name for fragment in fragments}
    for flat in distinct_flats(fragments):
        # All parameters in one flat tensor have one optimiser.
        keys = source.optimizer_keys(names[id(flat)])
        base_optimizer.state.pop(flat, None)
        for key in keys:
            base_optimizer.state[flat][key] = torch.zeros_like(flat, memory_format=torch.preserve_format).detach()
        # Only moments are corrected for their bias: Muon's and SGD's momentum count nothing.
        if "exp_avg" in keys and not counting_groups:
            device = flat.device if on_device else torch.device("cpu")
            base_optimizer.state[flat]["step"] = torch.tensor(scalars["step"], dtype=torch.float32, device=device)


def refresh_working_copies(optimizer: Any, *, zero_stage: int) -> None:
    """Make the weights that the model computes with follow masters that were written to; collective."""
    if zero_stage in (1, 2):
        optimizer.update_lp_params()
    elif zero_stage == 3:
        optimizer.checkpoint_event_prologue()  # lets go of whole parameters: they are gathered anew
        # As its own step does it; the public way around this also asks for gradients, which there are none of.
        for subgroup in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(subgroup)
        optimizer.checkpoint_event_epilogue()  # gathers the small ones that every rank keeps whole


def distinct_flats(fragments: list[Fragment]) -> Iterator[Tensor]:
    """The flat tensors that fragments lie in, each once."""
    seen: set[int] = set()
    for fragment in fragments:
        if id(fragment.flat) not in seen:
            seen.add(id(fragment.flat))
            yield fragment.flat
