"""Attention within documents equals masked attention over everything, for the path of every device."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trainer.model import attention
from trainer.model.attention import document_attention, has_variable_length_kernel
from trainer.model.layout import document_offsets

GROUPS = ((2, 1), (3, 2), (1, 5))
TOKENS = 13


def qkv(requires_grad: bool = False) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(TOKENS, 2, 4, generator=generator).requires_grad_(requires_grad) for _ in range(3)]


def masked_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    document = torch.bucketize(torch.arange(TOKENS), torch.tensor(document_offsets(GROUPS)), right=True)
    scores = torch.einsum("qhd,khd->hqk", query, key) / 2.0
    scores = scores.masked_fill(document[:, None] != document[None, :], float("-inf"))
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), value)


def test_a_token_attends_to_its_own_document_only() -> None:
    query, key, value = qkv()
    torch.testing.assert_close(
        document_attention(query, key, value, groups=GROUPS, dropout_rate=0.0), masked_attention(query, key, value)
    )


def test_gradients_equal_those_of_masked_attention() -> None:
    ours, reference = qkv(requires_grad=True), qkv(requires_grad=True)
    weights = torch.randn(TOKENS, 2, 4, generator=torch.Generator().manual_seed(1))
    (document_attention(*ours, groups=GROUPS, dropout_rate=0.0) * weights).sum().backward()
    (masked_attention(*reference) * weights).sum().backward()
    for own, expected in zip(ours, reference, strict=True):
        torch.testing.assert_close(own.grad, expected.grad)


def test_with_dropout_the_form_is_the_same_and_the_weights_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = qkv()
    seen: list[float] = []

    def record(weights: Tensor, *, rate: float, training: bool) -> Tensor:
        assert training
        seen.append(rate)
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
        return weights

    monkeypatch.setattr(attention, "dropout", record)
    result = document_attention(query, key, value, groups=GROUPS, dropout_rate=0.25)
    torch.testing.assert_close(result, masked_attention(query, key, value))
    assert seen == [0.25] * len(GROUPS)


def test_dropout_changes_the_result_and_keeps_its_mean() -> None:
    torch.manual_seed(0)
    copies = 4000
    one_document = [part[-5:] for part in qkv()]
    repeated = [part.repeat(copies, 1, 1) for part in one_document]
    draws = document_attention(*repeated, groups=((copies, 5),), dropout_rate=0.3).view(copies, 5, 2, 4)
    exact = document_attention(*one_document, groups=((1, 5),), dropout_rate=0.0)
    assert (draws[0] - draws[1]).abs().max() > 0.01
    assert (draws.mean(0) - exact).abs().max() < 0.06


def test_no_document_gives_an_empty_result_with_a_graph() -> None:
    empty = [torch.randn(0, 2, 4, requires_grad=True) for _ in range(3)]
    document_attention(*empty, groups=(), dropout_rate=0.1).sum().backward()
    assert all(tensor.grad is not None for tensor in empty)


def test_the_variable_length_kernel_is_for_half_precision_on_cuda_only() -> None:
    cuda = torch.device("cuda", 0)
    assert not has_variable_length_kernel(torch.device("cpu"), torch.bfloat16, 64)
    assert not has_variable_length_kernel(cuda, torch.float32, 64)
    assert not has_variable_length_kernel(cuda, torch.bfloat16, 20)
    assert not has_variable_length_kernel(cuda, torch.bfloat16, 512)


@pytest.mark.skipif(
    not has_variable_length_kernel(torch.device("cuda" if torch.cuda.is_available() else "cpu"), torch.bfloat16, 64),
    reason="needs a CUDA device of sm80 or later and torch.nn.attention.varlen",
)
def test_the_variable_length_kernel_equals_the_grouped_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [torch.randn(TOKENS, 2, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
    kernel = document_attention(*parts, groups=GROUPS, dropout_rate=0.0)
    monkeypatch.setattr(attention, "has_variable_length_kernel", lambda *_: False)
    grouped = document_attention(*parts, groups=GROUPS, dropout_rate=0.0)
    torch.testing.assert_close(kernel, grouped, atol=2e-2, rtol=2e-2)
