from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from trainer.nonfinite import NonFiniteWatch
from trainer.runtime import Runtime


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, values: Tensor) -> Tensor:
        return values * self.scale


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embeddings = Block()
        self.layers = nn.ModuleList(Block() for _ in range(3))

    def forward(self, values: Tensor) -> Tensor:
        values = self.embeddings(values)
        for layer in self.layers:
            values = layer(values)
        return values


def step(model: Model, watch: NonFiniteWatch, number: int, *, applied: bool = True, spoil: float = 1.0) -> None:
    output = model(torch.ones(2))
    loss = (output * spoil).sum()
    loss.backward()
    watch.end_step(number, losses=loss.detach(), applied=applied)


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def watch(model: Model, runtime: Runtime) -> NonFiniteWatch:
    return NonFiniteWatch(model, device=torch.device("cpu"))


def test_a_healthy_run_has_no_place(model: Model, watch: NonFiniteWatch) -> None:
    for number in (1, 2, 3):
        step(model, watch, number)
    assert watch.locate() is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_first_step_and_the_first_layer_are_named(model: Model, watch: NonFiniteWatch, value: float) -> None:
    step(model, watch, 1)
    with torch.no_grad():
        model.layers[1].scale.fill_(value)  # type: ignore[operator, union-attr]
    step(model, watch, 2)
    with torch.no_grad():
        model.embeddings.scale.fill_(value)
    step(model, watch, 3)
    assert watch.locate() == "first seen at step 2 on rank 0 in the output of layers.1"


def test_a_loss_that_leaves_the_numbers_by_itself_is_named(model: Model, watch: NonFiniteWatch) -> None:
    step(model, watch, 7, spoil=float("inf"))
    assert watch.locate() == "first seen at step 7 on rank 0 in the loss"


def test_a_gradient_is_named_by_the_block_that_it_reaches_first(model: Model, watch: NonFiniteWatch) -> None:
    def spoil(gradient: Tensor) -> Tensor:
        return gradient * torch.nan

    def spoil_behind(block: nn.Module, inputs: object, output: Tensor) -> Tensor:
        # The watch's own hook comes first and sees the gradient that comes from behind this one.
        output = output * 1.0
        output.register_hook(spoil)
        return output

    model.layers[1].register_forward_hook(spoil_behind)
    step(model, watch, 4)
    assert watch.locate() == "first seen at step 4 on rank 0 in the gradient at the output of layers.1"


def test_scaled_gradients_that_were_not_applied_are_no_fault(model: Model, watch: NonFiniteWatch) -> None:
    def spoil_behind(block: nn.Module, inputs: object, output: Tensor) -> Tensor:
        output = output * 1.0
        output.register_hook(lambda gradient: gradient * torch.inf)
        return output

    model.layers[1].register_forward_hook(spoil_behind)
    step(model, watch, 4, applied=False)
    assert watch.locate() is None


def test_evaluation_is_not_watched(model: Model, watch: NonFiniteWatch) -> None:
    with torch.no_grad():
        model.eval()(torch.full((2,), torch.nan))
    step(model.train(), watch, 1)
    assert watch.locate() is None
