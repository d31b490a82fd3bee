"""The recurrent baseline: torch's own stacked LSTM, on every task, by the same commands as BERT."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_run import finetuned_run, train_steps
from small_task import write_entities, write_recipe, write_sentences, write_sentiment
from torch import Tensor

from trainer.checkpoint_files import CheckpointReader
from trainer.encoder_config import BiLSTMConfig
from trainer.errors import UserError
from trainer.export import export_checkpoint
from trainer.flops import bilstm_flops
from trainer.model.bilstm import BiLSTMEncoder
from trainer.model.create import initialize_weights
from trainer.recipe import load_finetune_recipe
from trainer.runtime import Runtime
from trainer.task_export import export_task
from trainer.task_predict import Predictor, score_run

SHAPE = BiLSTMConfig(embedding_size=6, hidden_size=8, vocab_size=30)
BILSTM = (
    "start.model=null",
    "start.encoder=bilstm",
    "start.bilstm={embedding_size: 16, hidden_size: 32, initializer_range: 0.2}",
)


def encoder() -> BiLSTMEncoder:
    model = BiLSTMEncoder(SHAPE)
    initialize_weights(model, std=0.5, seed=1)
    return model.eval()


def torchs_own(model: BiLSTMEncoder) -> torch.nn.LSTM:
    """Two stacked layers in both directions, with the encoder's weights."""
    own = torch.nn.LSTM(6, 4, num_layers=2, bidirectional=True, batch_first=True)
    weights = {
        name.replace("_l0", f"_l{number}") + suffix: weight
        for number, layer in enumerate(model.layers)
        for part, suffix in (("onward", ""), ("back", "_reverse"))
        for name, weight in layer.get_submodule(part).named_parameters()
    }
    own.load_state_dict(weights)
    return own


@torch.no_grad()
def test_each_document_gets_what_torchs_own_stacked_lstm_gives_it_alone() -> None:
    model = encoder()
    documents = [[2, 9, 8, 7, 3], [2, 5, 3], [2, 9, 8, 3]]
    ids, types = (
        torch.tensor([[id for document in documents for id in document]]),
        torch.tensor([[0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 1, 1]]),
    )
    numbers = torch.tensor([[1] * 5 + [2] * 3 + [3] * 4])
    found = model(ids, position_ids=torch.zeros_like(ids), document_ids=numbers, token_type_ids=types)
    own, start, expected = torchs_own(model), 0, {}
    for document in documents:
        end = start + len(document)
        embedded = model.embeddings(ids[0, start:end], types[0, start:end])
        expected[len(document)] = own(embedded[None])[0][0]
        start = end
    # The layout's order: by length.
    torch.testing.assert_close(found, torch.cat([expected[3], expected[4], expected[5]]))
    rows = torch.tensor([0, 3, 11])
    chosen = model(ids, position_ids=ids, document_ids=numbers, token_type_ids=types, rows=rows)
    torch.testing.assert_close(chosen, found[rows])


def test_dropout_works_in_training_only() -> None:
    model = encoder()
    ids = torch.tensor([[2, 9, 8, 3]])

    def states() -> Tensor:
        found: Tensor = model(ids, position_ids=ids, document_ids=torch.ones_like(ids))
        return found

    assert torch.equal(states(), states())
    model.train()
    assert not torch.equal(states(), states())


def test_its_flops_are_those_of_four_gates_in_both_directions() -> None:
    # Layer 1: 2 directions × 4 gates × 2 × 4 × (6 + 4); layer 2: the same with 8 + 4; three times for both passes.
    assert bilstm_flops(SHAPE, tokens=5) == 3 * 5 * (2 * 4 * 2 * 4 * 10 + 2 * 4 * 2 * 4 * 12)


@pytest.mark.parametrize(
    ("task", "suffix", "pieces", "metric"),
    [
        ("classification", "tsv", 40, "accuracy"),
        ("tagging", "conll", 27, "f1"),
        ("segmentation", "txt", 16, "f1"),
    ],
)
def test_it_learns_every_task(
    task: str, suffix: str, pieces: int, metric: str, runtime: Runtime, tmp_path: Path
) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("seqeval")
    write_sentiment(tmp_path)
    write_entities(tmp_path)
    write_sentences(tmp_path)
    recipe = write_recipe(tmp_path, task=f"  name: {task}", suffix=suffix, pieces=pieces)
    settings = ("train.epochs=20", "optimizer.learning_rate=1e-2", "engine.ds_config=zero2")
    run = finetuned_run(recipe, runtime, tmp_path / "runs", *BILSTM, *settings)
    assert score_run(run, which="auto")["parts"]["test"][metric] > 0.9
    predictor = Predictor.load(run, which="auto")
    assert len(predictor.predict([predictor.reader.from_line("the film", where="x")])) == 1
    with pytest.raises(UserError, match="has a BiLSTM for its encoder, which no other program takes"):
        export_task(run, which="auto", out=tmp_path / "out")
    with pytest.raises(UserError, match="has a BiLSTM for its encoder, which neither Hugging Face nor another run"):
        export_checkpoint(run, which="auto", out=tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["start.encoder=bilstm"],
            r"start\.encoder=bilstm has new weights of the shape start\.bilstm; remove path and",
        ),
        (
            ["start.bilstm={num_layers: 2}"],
            r"start\.bilstm is the shape of start\.encoder: bilstm, and encoder is bert",
        ),
        ([*BILSTM, "start.bilstm.vocab_size=9"], r"start\.bilstm\.vocab_size is decided by start\.tokenizer; leave it"),
        ([*BILSTM, "start.bilstm.hidden_size=9"], r"start\.bilstm\.hidden_size=9 must be a multiple of 2"),
        (["start.encoder=lstm"], r"start\.encoder='lstm' must be 'bert' or 'bilstm'; did you mean bilstm\?"),
    ],
)
def test_a_recipe_that_mixes_the_two_is_refused(settings: list[str], message: str, tmp_path: Path) -> None:
    write_sentiment(tmp_path)
    with pytest.raises(UserError, match=message):
        load_finetune_recipe(str(write_recipe(tmp_path)), overrides=settings)


def test_its_default_shape_is_two_layers(tmp_path: Path) -> None:
    overrides = ["start.model=null", "start.encoder=bilstm", "start.dropout=0.3"]
    config = load_finetune_recipe(str(write_recipe(tmp_path)), overrides=overrides)
    assert config.start.new_shape == BiLSTMConfig(embedding_size=128, hidden_size=256, num_layers=2)


def test_its_lower_layers_can_be_frozen(runtime: Runtime, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    write_sentiment(tmp_path)
    settings = (*BILSTM, "train.frozen_layers=1", "checkpoint.every_steps=1", "checkpoint.keep_last=12")
    run = train_steps(write_recipe(tmp_path), runtime, tmp_path, *settings, until=4)
    first, last = (CheckpointReader(run.checkpoints.path(step)).weights() for step in (1, 4))
    same = {name for name in first if torch.equal(first[name], last[name])}
    assert same == {name for name in first if name.startswith(("encoder.embeddings.", "encoder.layers.0."))}
    assert any(name.startswith("encoder.layers.1.") for name in first)
