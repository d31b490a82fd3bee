"""The encoder: packing changes nothing, each knob changes something, positions are the paper's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trainer.config import ModelConfig
from trainer.errors import UserError
from trainer.model.create import create_model
from trainer.model.encoder import BertEncoder, sinusoidal_table
from trainer.model.layout import TokenLayout

TINY = ModelConfig(
    hidden_size=8,
    num_layers=2,
    num_heads=2,
    intermediate_size=16,
    max_positions=6,
    vocab_size=19,
    hidden_dropout=0.0,
    attention_dropout=0.0,
    initializer_range=0.5,
)
# Documents of 3 and 2 in one row, one of 4 and padding in the other.
INPUT_IDS = torch.tensor([[5, 6, 7, 8, 9, 0], [5, 9, 9, 6, 0, 0]])
POSITION_IDS = torch.tensor([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 0, 0]])
DOCUMENT_IDS = torch.tensor([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 0, 0]])
LAYOUT = TokenLayout.from_document_ids(DOCUMENT_IDS)


def encoder(**changes: object) -> BertEncoder:
    return create_model(TINY.model_copy(update=changes), seed=0).encoder.eval()


def encode(model: BertEncoder, **changes: Tensor | None) -> Tensor:
    inputs = {"position_ids": POSITION_IDS, "document_ids": DOCUMENT_IDS, **changes}
    return LAYOUT.scatter(model(INPUT_IDS, **inputs), shape=(2, 6))


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_a_packed_document_gives_what_it_gives_alone(norm: str, positions: str) -> None:
    model = encoder(norm=norm, positions=positions)
    packed = encode(model)
    for row, start, end in ((0, 0, 3), (0, 3, 5), (1, 0, 4)):
        alone = model(
            INPUT_IDS[row : row + 1, start:end],
            position_ids=torch.arange(end - start)[None],
            document_ids=torch.ones(1, end - start),
        )
        torch.testing.assert_close(packed[row, start:end], alone)
    assert packed[DOCUMENT_IDS == 0].abs().max() == 0


def test_rows_selects_without_changing_anything() -> None:
    model = encoder()
    rows = torch.tensor([7, 0, 4])
    inputs = {"position_ids": POSITION_IDS, "document_ids": DOCUMENT_IDS}
    torch.testing.assert_close(model(INPUT_IDS, **inputs, rows=rows), model(INPUT_IDS, **inputs)[rows])


def test_int32_batches_are_taken_as_they_come() -> None:
    model = encoder()
    narrow = model(INPUT_IDS.int(), position_ids=POSITION_IDS.int(), document_ids=DOCUMENT_IDS.int())
    assert torch.equal(narrow, model(INPUT_IDS, position_ids=POSITION_IDS, document_ids=DOCUMENT_IDS))


def test_missing_token_types_are_type_zero() -> None:
    model = encoder()
    assert torch.equal(encode(model), encode(model, token_type_ids=torch.zeros_like(INPUT_IDS)))
    assert not torch.allclose(encode(model), encode(model, token_type_ids=torch.ones_like(INPUT_IDS)))


@pytest.mark.parametrize(
    "change",
    [
        {"norm": "pre"},
        {"positions": "sinusoidal"},
        {"activation": "gelu_tanh"},
        {"activation": "relu"},
        {"num_heads": 4},
        {"num_layers": 1},
        {"layer_norm_eps": 1e-2},
        {"initializer_range": 0.4},
    ],
)
def test_every_knob_changes_the_result(change: dict[str, object]) -> None:
    assert (encode(encoder(**change)) - encode(encoder())).abs().max() > 1e-6


@pytest.mark.parametrize("knob", ["embedding_dropout", "hidden_dropout", "attention_dropout"])
def test_dropout_is_active_in_training_only(knob: str) -> None:
    model = encoder(**{knob: 0.5})
    assert torch.equal(encode(model), encode(encoder()))
    model.train()
    assert not torch.allclose(encode(model), encode(model))


@pytest.mark.parametrize(("rates", "dropped"), [((None, 0.5), True), ((0.0, 0.5), False), ((0.5, 0.0), True)])
def test_the_embeddings_have_a_rate_of_their_own_or_that_of_the_layers(
    rates: tuple[float | None, float], dropped: bool
) -> None:
    embeddings = encoder(embedding_dropout=rates[0], hidden_dropout=rates[1]).train().embeddings
    ids = torch.zeros(64, dtype=torch.int64)
    assert bool((embeddings(ids, ids, ids) == 0).any()) is dropped


def test_dropout_reaches_the_embeddings_and_both_sublayers() -> None:
    model = encoder(hidden_dropout=0.5).train()
    flat = (LAYOUT.flatten(INPUT_IDS), LAYOUT.flatten(POSITION_IDS), torch.zeros(9, dtype=torch.int64))
    assert not torch.equal(model.embeddings(*flat), model.embeddings(*flat))
    layer = model.layers[0]
    for silenced in (layer.attention.output, layer.feed_forward.down):
        # Without one sublayer the other's dropout alone must still show.
        torch.nn.init.zeros_(silenced.weight)
        hidden = torch.randn(9, 8, generator=torch.Generator().manual_seed(0))
        assert not torch.equal(layer(hidden, LAYOUT.groups), layer(hidden, LAYOUT.groups))
        torch.nn.init.normal_(silenced.weight)


def test_sinusoids_are_the_papers_scaled_to_the_words() -> None:
    table = sinusoidal_table(TINY) / TINY.initializer_range
    assert table.shape == (6, 8)
    assert table[0].tolist() == [0, 1, 0, 1, 0, 1, 0, 1]
    assert table[3, 2].item() == pytest.approx(math.sin(3 / 10000 ** (2 / 8)))
    assert table[5, 7].item() == pytest.approx(math.cos(5 / 10000 ** (6 / 8)))


def test_sinusoids_are_no_weights() -> None:
    model = encoder(positions="sinusoidal")
    assert not [name for name in model.state_dict() if "position" in name]


def test_an_odd_hidden_size_has_a_last_sine() -> None:
    odd = TINY.model_copy(update={"hidden_size": 5, "num_heads": 1})
    assert sinusoidal_table(odd).shape == (6, 5)


def test_a_model_without_a_vocabulary_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"model\.vocab_size is not set"):
        BertEncoder(TINY.model_copy(update={"vocab_size": None}))
