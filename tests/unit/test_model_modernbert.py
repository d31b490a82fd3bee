"""Family modernbert computes what transformers' ModernBERT does, alone, padded and packed, and goes to it and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from trainer.check import check_recipe
from trainer.config import Config, ModelConfig
from trainer.errors import UserError
from trainer.flops import model_flops
from trainer.model.attention import document_attention
from trainer.model.bert import BertForMaskedLanguageModel, BertWithPooler
from trainer.model.create import create_model, parameter_groups
from trainer.model.hf_export import export_hf
from trainer.model.hf_import import import_hf
from trainer.model.weights import load_weights
from trainer.recipe import load_recipe

transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'bertline[hf]'")

# Two rows of documents of 9, 3 and 2 tokens, and of 14: more than the window of 4 reaches.
DOCUMENT_IDS = torch.tensor([[1] * 9 + [2] * 3 + [3] * 2 + [0] * 2, [1] * 14 + [0] * 2])
POSITION_IDS = torch.tensor([[*range(9), *range(3), *range(2), 0, 0], [*range(14), 0, 0]])
INPUT_IDS = torch.randint(5, 30, (2, 16), generator=torch.Generator().manual_seed(1)) * (DOCUMENT_IDS > 0)
DOCUMENTS = ((0, 0, 9), (0, 9, 12), (0, 12, 14), (1, 0, 14))


def config(**changes: Any) -> ModelConfig:
    shape = {"hidden_size": 16, "num_layers": 5, "num_heads": 2, "intermediate_size": 12, "max_positions": 16}
    own = {"family": "modernbert", "vocab_size": 30, "local_window": 4, "initializer_range": 0.3}
    return ModelConfig.model_validate({**shape, **own, **changes})


def randomized(changes: dict[str, Any]) -> BertForMaskedLanguageModel:
    """Every weight random, norms and the decoder's bias too, so that a swapped or forgotten one shows."""
    model = create_model(config(**changes), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def exported(model: BertForMaskedLanguageModel, folder: Path) -> Path:
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "vocab.txt").write_text("[PAD]\n")
    state = model.state_dict()
    export_hf(state, config=model.config, tokenizer_folder=tokenizer, out=folder / "out", max_seq_len=16)
    return folder / "out"


def logits(model: BertForMaskedLanguageModel) -> Tensor:
    with torch.no_grad():
        return model.logits(INPUT_IDS, POSITION_IDS, DOCUMENT_IDS)


def load(named: Any, folder: Path) -> Any:
    model, info = named.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


def assert_equal_logits(model: BertForMaskedLanguageModel, reference: Any) -> None:
    packed = logits(model)
    with torch.no_grad():
        for row, start, end in DOCUMENTS:
            alone = reference(INPUT_IDS[row : row + 1, start:end]).logits[0]
            torch.testing.assert_close(packed[row, start:end], alone, rtol=0, atol=1e-4)
        lengths = torch.tensor([14, 7])
        padded = torch.where(torch.arange(16) < lengths[:, None], INPUT_IDS[1].expand(2, 16), 0)
        attended = (torch.arange(16) < lengths[:, None]).long()
        ours = model.logits(padded, torch.arange(16).expand(2, 16), attended)
        theirs = reference(padded, attention_mask=attended).logits
    torch.testing.assert_close(ours[attended > 0], theirs[attended > 0], rtol=0, atol=1e-4)


CASES = [
    {},
    {"global_every": 2, "local_window": 2},
    {"local_rope_theta": 50.0, "global_rope_theta": 300.0},
    {"activation": "gelu_tanh", "layer_norm_eps": 1e-2},
    {"num_layers": 2, "global_every": 3},
]


@pytest.mark.parametrize("changes", CASES)
def test_transformers_loads_every_weight_and_gives_equal_logits(changes: dict[str, Any], tmp_path: Path) -> None:
    model = randomized(changes)
    out = exported(model, tmp_path)
    assert_equal_logits(model, load(transformers.ModernBertForMaskedLM, out))
    assert isinstance(load(transformers.AutoModelForMaskedLM, out), transformers.ModernBertForMaskedLM)
    assert "pre-norm" in (out / "README.md").read_text()


@pytest.mark.parametrize("changes", CASES)
def test_a_folder_of_transformers_gives_equal_logits_here(changes: dict[str, Any], tmp_path: Path) -> None:
    first = exported(randomized(changes), tmp_path)
    reference = load(transformers.ModernBertForMaskedLM, first)
    reference.save_pretrained(tmp_path / "theirs")
    imported = import_hf(tmp_path / "theirs")
    assert imported.missing == ("pooler", "pair_head")
    # What transformers does not read from a recipe is the default's.
    assert imported.config == config(**changes).model_copy(update={"embedding_dropout": 0.1})
    model = create_model(imported.config, seed=5)
    load_weights(model, imported.weights, source="theirs")
    assert_equal_logits(model.eval(), reference)


def test_the_encoder_alone_is_a_modernbert_model(tmp_path: Path) -> None:
    model = randomized({})
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "vocab.txt").write_text("[PAD]\n")
    state = {name: weight for name, weight in model.state_dict().items() if name.startswith("encoder.")}
    export_hf(state, config=model.config, tokenizer_folder=tokenizer, out=tmp_path / "out", max_seq_len=16)
    reference = load(transformers.ModernBertModel, tmp_path / "out")
    row = {"position_ids": POSITION_IDS[1:, :14], "document_ids": DOCUMENT_IDS[1:, :14]}
    with torch.no_grad():
        hidden = model.encoder(INPUT_IDS[1:, :14], **row)
        theirs = reference(INPUT_IDS[1:, :14]).last_hidden_state[0]
        some = model.encoder(INPUT_IDS[1:, :14], **row, rows=torch.tensor([3, 11]))
    torch.testing.assert_close(hidden, theirs, rtol=0, atol=1e-4)
    torch.testing.assert_close(some, theirs[[3, 11]], rtol=0, atol=1e-4)


def test_only_the_decoder_has_a_bias_and_no_norm_decays() -> None:
    model = create_model(config(), seed=0)
    assert [name for name, _ in model.named_parameters() if name.endswith("bias")] == ["head.decoder.bias"]
    groups = {group["name"]: group["params"] for group in parameter_groups(model, weight_decay=0.1, muon=True)}
    # Four matrices in each of five layers; two norms, one in the first, and three outside the layers, and the bias.
    assert [len(groups[name]) for name in ("muon", "decay", "no_decay")] == [20, 2, 9 + 3 + 1]


@pytest.mark.parametrize(
    "change",
    [{"local_window": 2}, {"global_every": 2}, {"local_rope_theta": 100.0}, {"global_rope_theta": 100.0}],
    ids=lambda change: next(iter(change)),
)
def test_every_key_of_the_family_changes_what_is_computed(change: dict[str, Any]) -> None:
    assert not torch.allclose(logits(randomized({})), logits(randomized(change)), atol=1e-3)


@pytest.mark.parametrize("rate", ["hidden_dropout", "attention_dropout", "embedding_dropout"])
def test_dropout_is_there_in_training_alone(rate: str) -> None:
    quiet = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "embedding_dropout": 0.0}
    model, still = randomized({**quiet, rate: 0.5}), randomized(quiet)
    assert torch.equal(logits(model), logits(still))
    assert not torch.allclose(logits(model.train()), logits(still.train()), atol=1e-3)


@pytest.mark.parametrize("dropout_rate", [0.0, 0.25])
def test_a_token_sees_as_far_as_it_reaches_and_not_into_other_documents(dropout_rate: float) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(9, 1, 4, generator=generator).requires_grad_() for _ in range(3))
    groups = ((1, 2), (1, 7))
    context = document_attention(query, key, value, groups=groups, dropout_rate=dropout_rate, reach=2)
    for token, seen in ((0, range(2)), (2, range(2, 5)), (5, range(3, 8)), (8, range(6, 9))):
        (gradient,) = torch.autograd.grad(context[token].sum(), key, retain_graph=True)
        assert set(gradient.abs().sum((1, 2)).nonzero().flatten().tolist()) <= set(seen)
        if not dropout_rate:
            assert gradient.abs().sum((1, 2)).count_nonzero() == len(seen)


def test_layers_computed_again_give_the_same_gradients() -> None:
    labels = torch.where(torch.arange(16) % 3 == 1, INPUT_IDS, -100)
    kept, again = (randomized({"hidden_dropout": 0.0, "attention_dropout": 0.0}).train() for _ in range(2))
    again.encoder.recompute = True
    for model in (kept, again):
        model(INPUT_IDS, POSITION_IDS, DOCUMENT_IDS, labels)["mlm"].loss.backward()
    found = dict(again.named_parameters())
    assert all(torch.equal(found[name].grad, value.grad) for name, value in kept.named_parameters())


def test_check_foretells_its_memory(tiny_recipe: Path) -> None:
    recipe = load_recipe(str(tiny_recipe), overrides=["model.family=modernbert"])
    found = check_recipe(recipe, world_size=2, device_type="cuda", program_bytes=0)
    # Words and one layer of 16 with feed-forward of 32, three norms, the head's matrix and norm, the decoder's bias.
    assert found.weights.parameters == 300 * 16 + 4 * 16**2 + 3 * 16 * 32 + 3 * 16 + 16**2 + 16 + 300
    assert found.weights.in_matrices == 4 * 16**2 + 3 * 16 * 32
    assert found.memory.activations_bytes > 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"norm": "pre"}, "norm=pre belongs to family: bert, and has no effect in family: modernbert; remove it"),
        ({"positions": "sinusoidal"}, "positions=sinusoidal belongs to family: bert"),
        ({"type_vocab_size": 1}, "type_vocab_size=1 belongs to family: bert"),
        ({"family": "bert", "local_window": 64}, "local_window=64 belongs to family: modernbert"),
        ({"family": "bert", "global_every": 1}, "global_every=1 belongs to family: modernbert"),
        ({"family": "bert", "local_rope_theta": 1.0}, "local_rope_theta=1.0 belongs to family: modernbert"),
        ({"family": "bert", "global_rope_theta": 1.0}, "global_rope_theta=1.0 belongs to family: modernbert"),
        ({"local_window": 5}, "multiple of 2"),
        ({"num_heads": 16}, "hidden_size=16 / num_heads=16 is odd, and rotary positions turn pairs"),
        ({"family": "bart"}, "'bert' or 'modernbert'"),
    ],
)
def test_a_key_of_the_other_family_is_refused(values: dict[str, Any], message: str) -> None:
    shape = {"hidden_size": 16, "num_heads": 2, "family": "modernbert"}
    with pytest.raises(ValidationError) as error:
        ModelConfig.model_validate({**shape, **values})
    assert message in str(error.value)


def test_pairs_are_refused_for_want_of_token_types() -> None:
    recipe = {
        "name": "pairs",
        "data": {"shards": "shards"},
        "train": {"steps": 5, "global_batch_size": 2, "micro_batch_size": 2},
        "model": {"family": "modernbert"},
        "objective": {"pairs": "sop"},
    }
    with pytest.raises(ValidationError, match=r"objective.pairs=sop needs token types, which model.family: modernbert"):
        Config.model_validate(recipe)


def test_a_pooler_is_not_exported_as_a_part_that_modernbert_lacks(tmp_path: Path) -> None:
    state = BertWithPooler(config()).state_dict()
    with pytest.raises(UserError, match=r"has unknown weights pooler.dense.bias, pooler.dense.weight"):
        export_hf(state, config=config(), tokenizer_folder=tmp_path, out=tmp_path / "out", max_seq_len=16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_bias": True}, "norm_bias=True is not supported; it must be False"),
        ({"decoder_bias": False}, "decoder_bias=False is not supported; it must be True"),
        ({"classifier_activation": "relu"}, "classifier_activation is not hidden_activation"),
        ({"hidden_activation": "silu"}, "hidden_activation='silu' is not supported; supported are gelu"),
        ({"layer_types": ["full_attention", "sliding_attention"] * 2 + ["sliding_attention"]}, "layer_types is not"),
        (
            {"layer_types": ["sliding_attention"] * 5},
            "layer_types is not supported: attention must be global in layer 0",
        ),
        ({"rope_scaling": {"factor": 2.0}}, "scaled rotary positions are not supported"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "yarn", "rope_theta": 1.0}}},
            "scaled rotary positions are not supported",
        ),
        ({"architectures": ["ModernBertForTokenClassification"]}, "ModernBertForTokenClassification is not supported"),
        ({"local_attention": 5}, "local_window Input should be a multiple of 2"),
        ({"num_hidden_layers": None}, "missing num_hidden_layers; a model's shape is not guessed"),
    ],
)
def test_a_config_that_means_another_model_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    out = exported(randomized({}), tmp_path)
    path = out / "config.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    with pytest.raises(UserError) as error:
        import_hf(out)
    assert message in str(error.value)


def test_keys_of_older_transformers_are_read(tmp_path: Path) -> None:
    out = exported(randomized({"global_every": 2, "local_rope_theta": 77.0}), tmp_path)
    path = out / "config.json"
    values = json.loads(path.read_text())
    del values["layer_types"], values["rope_parameters"]
    path.write_text(json.dumps(values))
    found = import_hf(out).config
    assert (found.global_every, found.local_rope_theta, found.global_rope_theta) == (2, 77.0, 160_000.0)


def test_flops_count_gates_and_what_local_attention_can_see() -> None:
    shape = config(vocab_size=30)
    found = model_flops(shape, tokens=28, sum_squared_document_lengths=81 + 9 + 4 + 196, predicted_tokens=4)
    h, i, tokens, predicted = 16, 12, 28, 4
    projections = 4 * tokens * (8 * h**2 + 6 * h * i) + tokens * 6 * h**2 + predicted * (2 * h**2 + 6 * h * i)
    # Layers 0 and 3 see 290 pairs of tokens, the three others at most 5 of each.
    attention = 4 * h * (2 * 290 + 3 * 5 * 28)
    head = predicted * (2 * h**2 + 2 * h * 30)
    assert found == 3 * (projections + attention + head)
