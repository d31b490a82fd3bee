"""An export is what transformers loads whole and computes equal logits with; what does not fit is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from torch import Tensor

from trainer.config import ModelConfig
from trainer.errors import UserError
from trainer.model.bert import BertForMaskedLanguageModel, BertWithPooler
from trainer.model.create import create_model, initialize_weights
from trainer.model.hf_export import export_hf

transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'bertline[hf]'")

INPUT_IDS = torch.tensor([[2, 6, 7, 8, 3, 2, 9, 3, 0], [2, 9, 9, 6, 11, 12, 13, 3, 0]])
POSITION_IDS = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 0], [0, 1, 2, 3, 4, 5, 6, 7, 0]])
DOCUMENT_IDS = torch.tensor([[1, 1, 1, 1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1, 1, 1, 0]])
TOKEN_TYPE_IDS = torch.tensor([[0, 0, 1, 1, 1, 0, 0, 1, 0], [0, 0, 0, 1, 1, 1, 1, 1, 0]])
DOCUMENTS = ((0, 0, 5), (0, 5, 8), (1, 0, 8))


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox jumps over the lazy dog, again and again"] * 4),
        model_prefix=str(folder / "spiece"),
        vocab_size=34,
        pad_id=0,
        unk_id=1,
        bos_id=2,
        eos_id=3,
        pad_piece="[PAD]",
        unk_piece="[UNK]",
        bos_piece="[CLS]",
        eos_piece="[SEP]",
        control_symbols=["[MASK]"],
        minloglevel=2,
    )
    return folder


def config(**changes: Any) -> ModelConfig:
    shape = ModelConfig(
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        intermediate_size=24,
        max_positions=12,
        vocab_size=34,
        initializer_range=0.3,
    )
    return shape.model_copy(update=changes)


def randomized(model: torch.nn.Module) -> Any:
    """Every weight random, biases and norms too, so that a swapped or forgotten one shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def export(model: torch.nn.Module, tokenizer_folder: Path, out: Path, max_seq_len: int = 12) -> Path:
    state = model.state_dict()
    export_hf(state, config=model.config, tokenizer_folder=tokenizer_folder, out=out, max_seq_len=max_seq_len)
    return out


def load(loader: Any, folder: Path, **options: Any) -> Any:
    model, info = loader.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(info.values()), info
    return model.eval()


def assert_equal_logits(model: BertForMaskedLanguageModel, reference: Any) -> None:
    """Packed and padded rows of ours against each document alone, padded, and under a 4-D mask in theirs."""
    with torch.no_grad():
        ours = model.logits(INPUT_IDS, POSITION_IDS, DOCUMENT_IDS, TOKEN_TYPE_IDS)
        same_document = (DOCUMENT_IDS[:, None, :, None] == DOCUMENT_IDS[:, None, None, :]) & (DOCUMENT_IDS > 0)[
            :, None, None, :
        ]
        mask = torch.where(same_document, 0.0, torch.finfo(torch.float32).min)
        theirs = reference(
            INPUT_IDS, attention_mask=mask, position_ids=POSITION_IDS, token_type_ids=TOKEN_TYPE_IDS
        ).logits
        assert_close(ours[DOCUMENT_IDS > 0], theirs[DOCUMENT_IDS > 0])
        for row, start, end in DOCUMENTS:
            alone = reference(
                INPUT_IDS[row : row + 1, start:end], token_type_ids=TOKEN_TYPE_IDS[row : row + 1, start:end]
            )
            assert_close(ours[row, start:end], alone.logits[0])
        padded = torch.tensor([[2, 6, 7, 3, 0, 0], [2, 9, 8, 6, 11, 3]])
        attended = (padded > 0).long()
        places = torch.arange(6).expand(2, 6)
        theirs = reference(padded, attention_mask=attended).logits
        assert_close(model.logits(padded, places, attended)[padded > 0], theirs[padded > 0])


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.abs().max() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"norm": "post"},
        {"norm": "pre"},
        {"norm": "post", "positions": "sinusoidal"},
        {"norm": "pre", "positions": "sinusoidal"},
        {"activation": "gelu_tanh"},
        {"activation": "relu", "layer_norm_eps": 1e-3},
    ],
)
def test_transformers_loads_every_weight_and_gives_equal_logits(
    changes: dict[str, Any], tokenizer_folder: Path, tmp_path: Path
) -> None:
    model = randomized(create_model(config(**changes), seed=0))
    out = export(model, tokenizer_folder, tmp_path / "out")
    named = transformers.MegatronBertForMaskedLM if model.config.norm == "pre" else transformers.BertForMaskedLM
    assert_equal_logits(model, load(named, out))
    assert isinstance(load(transformers.AutoModelForMaskedLM, out), named)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_a_model_with_a_pair_head_gives_equal_logits_of_both_heads(
    norm: str, tokenizer_folder: Path, tmp_path: Path
) -> None:
    model = randomized(create_model(config(norm=norm), seed=0, candidates=1))
    out = export(model, tokenizer_folder, tmp_path / "out")
    named = transformers.MegatronBertForPreTraining if norm == "pre" else transformers.BertForPreTraining
    reference = load(named, out)
    assert isinstance(load(transformers.AutoModelForPreTraining, out), named)
    assert json.loads((out / "config.json").read_text())["architectures"] == [named.__name__]
    with torch.no_grad():
        packed = model.logits(INPUT_IDS, POSITION_IDS, DOCUMENT_IDS, TOKEN_TYPE_IDS)
        pairs = model.pair_logits(INPUT_IDS, POSITION_IDS, DOCUMENT_IDS, TOKEN_TYPE_IDS)
        for number, (row, start, end) in enumerate(DOCUMENTS):
            ids, types = (part[row : row + 1, start:end] for part in (INPUT_IDS, TOKEN_TYPE_IDS))
            alone = reference(ids, token_type_ids=types)
            assert_close(packed[row, start:end], alone.prediction_logits[0])
            assert_close(pairs[number], alone.seq_relationship_logits[0])
        padded, types = torch.tensor([[2, 6, 3, 7, 3, 0], [2, 9, 3, 6, 11, 3]]), torch.tensor([[0, 0, 0, 1, 1, 0]] * 2)
        attended, places = (padded > 0).long(), torch.arange(6).expand(2, 6)
        theirs = reference(padded, attention_mask=attended, token_type_ids=types)
        assert_close(model.pair_logits(padded, places, attended, types), theirs.seq_relationship_logits)
        ours = model.logits(padded, places, attended, types)
        assert_close(ours[padded > 0], theirs.prediction_logits[padded > 0])


def test_a_plain_bert_model_takes_the_encoder_and_leaves_the_head(tokenizer_folder: Path, tmp_path: Path) -> None:
    model = randomized(create_model(config(), seed=0))
    out = export(model, tokenizer_folder, tmp_path / "out")
    reference, info = transformers.BertModel.from_pretrained(out, add_pooling_layer=False, output_loading_info=True)
    assert not info["missing_keys"]
    assert all(name.startswith("cls.predictions.") for name in info["unexpected_keys"])
    hidden = model.encoder(INPUT_IDS[1:, :8], position_ids=POSITION_IDS[1:, :8], document_ids=DOCUMENT_IDS[1:, :8])
    assert_close(hidden, reference.eval()(INPUT_IDS[1:, :8]).last_hidden_state[0])


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_an_encoder_with_a_pooler_is_a_plain_bert_model(norm: str, tokenizer_folder: Path, tmp_path: Path) -> None:
    model = BertWithPooler(config(norm=norm))
    initialize_weights(model, std=0.3, seed=0)
    randomized(model)
    out = export(model, tokenizer_folder, tmp_path / "out")
    reference = load(transformers.AutoModel, out)
    pooled = model(INPUT_IDS, POSITION_IDS, DOCUMENT_IDS, TOKEN_TYPE_IDS)
    for number, (row, start, end) in enumerate(DOCUMENTS):
        alone = reference(INPUT_IDS[row : row + 1, start:end], token_type_ids=TOKEN_TYPE_IDS[row : row + 1, start:end])
        assert_close(pooled[number], alone.pooler_output[0])


def test_the_folder_is_complete_and_its_tokenizer_and_pipeline_work(tokenizer_folder: Path, tmp_path: Path) -> None:
    out = export(create_model(config(), seed=0), tokenizer_folder, tmp_path / "deep" / "out", max_seq_len=9)
    names = ["README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert transformers.AutoTokenizer.from_pretrained(out).model_max_length == 9
    filled = transformers.pipeline("fill-mask", model=str(out))("the [MASK] dog", top_k=34)
    assert len(filled) == 34
    assert "pipeline_tag: fill-mask" in (out / "README.md").read_text()


def test_the_stored_type_is_the_states(tokenizer_folder: Path, tmp_path: Path) -> None:
    out = export(create_model(config(), seed=0).to(torch.bfloat16), tokenizer_folder, tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert load(transformers.AutoModelForMaskedLM, out, dtype="auto").dtype == torch.bfloat16


def test_rows_beyond_the_tokenizers_vocabulary_do_not_leave(tokenizer_folder: Path, tmp_path: Path) -> None:
    padded = randomized(create_model(config(vocab_size=40), seed=0))
    out = export(padded, tokenizer_folder, tmp_path / "out")
    reference = load(transformers.BertForMaskedLM, out)
    assert reference.config.vocab_size == 34
    theirs = reference(INPUT_IDS[1:, :8]).logits[0]
    assert_close(padded.logits(INPUT_IDS[1:, :8], POSITION_IDS[1:, :8], DOCUMENT_IDS[1:, :8])[0, :, :34], theirs)


def test_a_former_export_is_replaced_and_anything_else_refused(tokenizer_folder: Path, tmp_path: Path) -> None:
    model = create_model(config(), seed=0)
    out = tmp_path / "out"
    out.mkdir()
    export(model, tokenizer_folder, out)
    (out / "stale.txt").write_text("from before")
    export(model, tokenizer_folder, out)
    assert not (out / "stale.txt").exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="is no former export"):
        export(model, tokenizer_folder, mine)
    assert [path.name for path in mine.iterdir()] == ["thesis.tex"]
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UserError, match="is no former export"):
        export(model, tokenizer_folder, file)


def test_a_failed_export_leaves_nothing_behind_and_the_former_one_alone(tokenizer_folder: Path, tmp_path: Path) -> None:
    model = create_model(config(), seed=0)
    out = export(model, tokenizer_folder, tmp_path / "out")
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="holds no tokenizer"):
        export(create_model(config(), seed=1), tmp_path, out)
    assert (out / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_weights_that_do_not_fit_are_refused_by_name(tokenizer_folder: Path, tmp_path: Path) -> None:
    def refused(state: dict[str, Tensor], match: str, **changes: Any) -> None:
        options = {"config": config(), "max_seq_len": 12, **changes}
        with pytest.raises(UserError, match=match):
            export_hf(state, tokenizer_folder=tokenizer_folder, out=tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()

    state = create_model(config(), seed=0).state_dict()
    without = {name: weight for name, weight in state.items() if name != "encoder.layers.1.feed_forward.up.bias"}
    refused(without, r"lacks weights encoder\.layers\.1\.feed_forward\.up\.bias")
    refused({**state, "extra.weight": torch.ones(1)}, r"unknown weights extra\.weight")
    refused(state, r"has shape \(34, 16\)", config=config(vocab_size=35))
    refused({**state, "head.decoder.weight": torch.ones(34, 16)}, "must be the word embedding itself")
    refused(state, "max_seq_len=13 is longer than model.max_positions=12", max_seq_len=13)
    small = create_model(config(vocab_size=33), seed=0).state_dict()
    refused(small, "vocab_size=33 but .* has 34 pieces", config=config(vocab_size=33))


def test_a_state_without_the_tied_copy_is_the_same_export(tokenizer_folder: Path, tmp_path: Path) -> None:
    model = create_model(config(), seed=0)
    whole = export(model, tokenizer_folder, tmp_path / "whole")
    named = dict(model.named_parameters())
    assert "head.decoder.weight" not in named
    export_hf(named, config=model.config, tokenizer_folder=tokenizer_folder, out=tmp_path / "named", max_seq_len=12)
    assert (whole / "model.safetensors").read_bytes() == (tmp_path / "named" / "model.safetensors").read_bytes()
