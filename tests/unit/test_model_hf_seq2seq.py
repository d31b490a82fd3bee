"""An exported encoder–decoder is an EncoderDecoderModel with equal logits, and writes the same texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_corpus import small_tokenizer
from torch import Tensor

from trainer.config import ModelConfig
from trainer.errors import UserError
from trainer.finetune_config import TaskDataConfig
from trainer.model.hf_seq2seq import WritingSettings, export_encoder_decoder
from trainer.seq2seq_config import TranslationConfig
from trainer.tasks.examples import Example, Record, make_batch
from trainer.tasks.model import TaskModel
from trainer.tasks.seq2seq_head import Seq2SeqHead
from trainer.tasks.translation import Translation

transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'bertline[hf]'")

CLS, SEP, PAD = 2, 3, 0
SOURCES = ([7, 8, 9], [10], [11, 12, 13, 14, 15])
TARGETS = ([20, 21], [22, 23, 24, 25], [26])


def config(**changes: Any) -> ModelConfig:
    shape = ModelConfig(
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        intermediate_size=24,
        max_positions=12,
        vocab_size=300,
        initializer_range=0.3,
    )
    return shape.model_copy(update=changes)


class Numbers:
    """A tokenizer whose texts are ids."""

    cls_id, sep_id, unk_id, vocab_size = CLS, SEP, 1, 300

    def encode(self, texts: list[str]) -> list[Any]:
        return [np.array(text.split(), dtype=np.int32) for text in texts]

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


def task(**settings: Any) -> Translation:
    data = TaskDataConfig(train="", validation="", max_length=10)
    made = Translation(TranslationConfig(**settings), data)
    made.tokenizer = Numbers()  # type: ignore[assignment]
    return made


def examples(of: Translation) -> list[Example]:
    pairs = zip(SOURCES, TARGETS, strict=True)
    records = [Record("x:1", (" ".join(map(str, one)),), (" ".join(map(str, other)),)) for one, other in pairs]
    return of.examples(records, of.tokenizer)


def randomized(model: TaskModel) -> TaskModel:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def forward(model: TaskModel, of: Translation, **options: Any) -> Any:
    batch = make_batch(examples(of), term=of.term)
    return model(**{name: torch.from_numpy(array) for name, array in batch.model_inputs().items()}, **options)


def logits(model: TaskModel, of: Translation) -> Tensor:
    """Of every target token, example after example."""
    found = []

    def keep(hidden: Tensor, row_counts: Tensor, targets: Tensor) -> Tensor:
        found.append(Seq2SeqHead.logits(head, hidden, row_counts, targets))
        return found[0]

    head: Any = model.head
    head.logits = keep
    forward(model, of)
    return found[0]


def exported(model: TaskModel, folder: Path) -> Any:
    export_encoder_decoder(
        dict(model.named_parameters()),
        config=model.config,
        tokenizer_folder=small_tokenizer(),
        out=folder,
        max_seq_len=10,
        writing=WritingSettings(start_id=CLS, end_id=SEP, max_length=10, beams=1),
    )
    loaded, info = transformers.EncoderDecoderModel.from_pretrained(folder, output_loading_info=True)
    # The library's encoder has a pooler in any case; nothing reads it.
    assert {name.split(".")[1] for name in info["missing_keys"]} == {"pooler"}, info
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    return loaded.eval()


def padded(sequences: list[list[int]]) -> Tensor:
    longest = max(map(len, sequences))
    return torch.tensor([[*sequence, *[PAD] * (longest - len(sequence))] for sequence in sequences])


SHAPES = [
    {},
    {"positions": "sinusoidal"},
    {"activation": "relu"},
]


@pytest.mark.parametrize("changes", SHAPES)
@torch.no_grad()
def test_logits_are_those_of_an_encoder_decoder_model_with_padding(changes: dict[str, Any], tmp_path: Path) -> None:
    of = task()
    model = randomized(of.create_model(config(**changes)))
    theirs = exported(model, tmp_path / "hf")
    sources, targets = padded([[CLS, *one, SEP] for one in SOURCES]), padded([[CLS, *one] for one in TARGETS])
    found = theirs(
        input_ids=sources,
        attention_mask=(sources != PAD).long(),
        decoder_input_ids=targets,
        decoder_attention_mask=(targets != PAD).long(),
    ).logits
    ours = logits(model, of)
    assert ours.abs().max() > 0.5
    torch.testing.assert_close(ours, found[targets != PAD], atol=1e-4, rtol=0)


@torch.no_grad()
def test_the_loss_is_the_one_of_the_library_over_target_tokens(tmp_path: Path) -> None:
    of = task()
    model = randomized(of.create_model(config()))
    sources, labels = padded([[CLS, *one, SEP] for one in SOURCES]), padded([[*one, SEP] for one in TARGETS])
    labels = labels.masked_fill(labels == PAD, -100)
    inputs = padded([[CLS, *one] for one in TARGETS])
    theirs = exported(model, tmp_path / "hf")(
        input_ids=sources, attention_mask=(sources != PAD).long(), decoder_input_ids=inputs, labels=labels
    )
    term = forward(model, of)["translation"]
    assert int(term.predictions) == 10
    assert float(term.loss / term.predictions) == pytest.approx(float(theirs.loss), abs=1e-4)


@torch.no_grad()
def test_both_write_the_same_texts(tmp_path: Path) -> None:
    of = task(beams=1)
    model = randomized(of.create_model(config()))
    sources = padded([[CLS, *one, SEP] for one in SOURCES])
    lengths = set()
    for number in range(8):
        theirs = exported(model, tmp_path / str(number))
        written = theirs.generate(sources, attention_mask=(sources != PAD).long(), do_sample=False)
        tokens = forward(model, of, predict=True).outputs["tokens"]
        ours = [[token for token in row if token >= 0] for row in tokens.tolist()]
        assert ours == [[token for token in row[1:] if token not in (SEP, PAD)] for row in written.tolist()]
        lengths |= {len(row) for row in ours}
        # The next time texts end sooner.
        model.get_parameter("head.predictions.decoder.bias")[SEP] += 0.25
    assert min(lengths) < max(lengths)


@torch.no_grad()
def test_beams_penalty_and_length_change_what_is_written() -> None:
    weights = randomized(task().create_model(config())).state_dict()
    weights["head.predictions.decoder.bias"][SEP] += 1.25

    def tokens(**settings: Any) -> Tensor:
        of = task(**settings)
        model = of.create_model(config())
        model.load_state_dict(weights)
        found: Tensor = forward(model.eval(), of, predict=True).outputs["tokens"]
        return found

    def length(**settings: Any) -> int:
        return int((tokens(**settings) >= 0).sum())

    assert not torch.equal(tokens(beams=1), tokens(beams=4))
    assert length(length_penalty=0.0) < length(length_penalty=5.0)
    assert tokens().shape == (3, 9)
    assert tokens(target_length=4).shape == (3, 3)


def test_a_pre_norm_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.norm=pre: the library's decoder of that form cannot look at sources"):
        exported(randomized(task().create_model(config(norm="pre"))), tmp_path / "hf")


def test_a_tokenizer_that_is_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    model = randomized(task().create_model(config(vocab_size=20)))
    with pytest.raises(UserError, match=r"pieces and the model vocab_size=20: not its tokenizer"):
        exported(model, tmp_path / "hf")
    assert list(tmp_path.iterdir()) == []
