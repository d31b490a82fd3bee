"""The decoder: token by token with a cache as all at once, each target by itself, nothing seen before its time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trainer.config import ModelConfig
from trainer.model.attention import attend
from trainer.model.create import initialize_weights
from trainer.model.decoder import BertDecoder
from trainer.model.padding import PaddedLayout

SOURCES, TARGETS = [3, 5, 2], [4, 1, 3]


def config(**changes: object) -> ModelConfig:
    shape = ModelConfig(
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        intermediate_size=24,
        max_positions=12,
        vocab_size=20,
        initializer_range=0.5,
        hidden_dropout=0.0,
        attention_dropout=0.0,
    )
    return shape.model_copy(update=changes)


def make_decoder(shape: ModelConfig) -> BertDecoder:
    decoder = BertDecoder(shape)
    initialize_weights(decoder, std=shape.initializer_range, seed=1)
    return decoder.eval()


def states_and_tokens() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(sum(SOURCES), 16, generator=generator), torch.randint(
        5, 20, (sum(TARGETS),), generator=generator
    )


def positions(lengths: list[int]) -> Tensor:
    return torch.cat([torch.arange(length) for length in lengths])


def run(decoder: BertDecoder, memory: Tensor, sources: list[int], tokens: Tensor, targets: list[int]) -> Tensor:
    cache = decoder.remember(memory, torch.tensor(sources))
    layout = PaddedLayout.from_lengths(torch.tensor(targets))
    found: Tensor = decoder(tokens, positions(targets), layout=layout, cache=cache)
    return found


@pytest.mark.parametrize("changes", [{"norm": "post"}, {"norm": "pre"}, {"positions": "sinusoidal"}])
@torch.no_grad()
def test_each_target_is_computed_as_if_alone(changes: dict[str, object]) -> None:
    decoder = make_decoder(config(**changes))
    memory, tokens = states_and_tokens()
    together = run(decoder, memory, SOURCES, tokens, TARGETS)
    for number, (of_source, of_target) in enumerate(zip(memory.split(SOURCES), tokens.split(TARGETS), strict=True)):
        alone = run(decoder, of_source, [len(of_source)], of_target, [len(of_target)])
        torch.testing.assert_close(together.split(TARGETS)[number], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_no_token_sees_a_later_one_and_every_token_sees_the_source() -> None:
    decoder = make_decoder(config())
    memory, tokens = states_and_tokens()
    before = run(decoder, memory, SOURCES, tokens, TARGETS)
    changed = tokens.clone()
    changed[2] = 5 + (int(changed[2]) - 4) % 15
    after = run(decoder, memory, SOURCES, changed, TARGETS)
    assert torch.equal(before[:2], after[:2])
    assert (before[2:4] - after[2:4]).abs().amin(dim=1).min() > 0.0
    torch.testing.assert_close(before[4:], after[4:])
    moved = memory.clone()
    moved[3] += 1.0
    after = run(decoder, moved, SOURCES, tokens, TARGETS)
    assert [bool(torch.equal(*pair)) for pair in zip(before.split(TARGETS), after.split(TARGETS), strict=True)] == [
        True,
        False,
        True,
    ]


@pytest.mark.parametrize("norm", ["post", "pre"])
@torch.no_grad()
def test_with_a_cache_the_states_are_the_same_for_every_beam(norm: str) -> None:
    decoder = make_decoder(config(norm=norm))
    memory, _ = states_and_tokens()
    beams, length = 2, 4
    tokens = torch.randint(5, 20, (len(SOURCES) * beams, length), generator=torch.Generator().manual_seed(3))
    layout = PaddedLayout.of_single_tokens(len(tokens), device=tokens.device)
    cache = decoder.remember(memory, torch.tensor(SOURCES))
    steps = [
        decoder(tokens[:, place], torch.full((len(tokens),), place), layout=layout, cache=cache)
        for place in range(length)
    ]
    for row in range(len(tokens)):
        of_source = memory.split(SOURCES)[row // beams]
        whole = run(decoder, of_source, [len(of_source)], tokens[row], [length])
        torch.testing.assert_close(torch.stack([step[row] for step in steps]), whole, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_chosen_hypotheses_go_on_from_their_own_past() -> None:
    decoder = make_decoder(config())
    memory, _ = states_and_tokens()
    cache = decoder.remember(memory, torch.tensor(SOURCES))
    first = torch.tensor([5, 6, 7, 8, 9, 10])
    layout = PaddedLayout.of_single_tokens(6, device=first.device)
    decoder(first, torch.zeros(6, dtype=torch.int64), layout=layout, cache=cache)
    cache.select(sources=torch.tensor([2, 0]), targets=torch.tensor([5, 5, 1, 0]))
    second = torch.tensor([11, 12, 13, 14])
    layout = PaddedLayout.of_single_tokens(4, device=first.device)
    found = decoder(second, torch.ones(4, dtype=torch.int64), layout=layout, cache=cache)
    for row, (source, past) in enumerate([(2, 10), (2, 10), (0, 6), (0, 5)]):
        of_source = memory.split(SOURCES)[source]
        whole = run(decoder, of_source, [len(of_source)], torch.tensor([past, int(second[row])]), [2])
        torch.testing.assert_close(found[row], whole[1], atol=1e-5, rtol=1e-5)


def test_attention_with_dropout_is_masked_too() -> None:
    generator = torch.Generator().manual_seed(4)
    query, key, value = (torch.randn(1, 2, 3, 4, generator=generator) for _ in range(3))
    mask = torch.ones((3, 3), dtype=torch.bool).tril()
    plain = attend(query, key, value, dropout_rate=0.0, mask=mask)
    # A rate that rounds to none: the form with dropout, nothing dropped.
    torch.testing.assert_close(attend(query, key, value, dropout_rate=1e-6, mask=mask), plain)


def test_padding_comes_and_goes() -> None:
    layout = PaddedLayout.from_lengths(torch.tensor([2, 3]))
    flat = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    assert layout.pad(flat).tolist() == [[1.0, 2.0, 0.0], [3.0, 4.0, 5.0]]
    assert torch.equal(layout.flatten(layout.pad(flat)), flat)
