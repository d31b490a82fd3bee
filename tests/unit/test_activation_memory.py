import torch

from trainer.activation_memory import measure_activations, resident_bytes, sample_lengths, saved_bytes
from trainer.config import ModelConfig

MIB = 1 << 20
MODEL = ModelConfig(
    hidden_size=64,
    num_layers=3,
    num_heads=2,
    intermediate_size=128,
    max_positions=64,
    vocab_size=50,
    hidden_dropout=0.0,
    attention_dropout=0.0,
)


def measured(model=MODEL, *, documents=(64,) * 4, precision="fp32", recompute=False):
    return measure_activations(model, documents=documents, precision=precision, resident=False, recompute=recompute)


def test_a_sample_of_documents_is_spread_as_all_of_them():
    assert sample_lengths([30, 10, 20, 40], tokens=100) == [10, 20, 30, 40]
    assert sample_lengths([10] * 5 + [30] * 5, tokens=80) == [10, 10, 30, 30]
    assert sample_lengths([50], tokens=3) == [50]
    assert sample_lengths([5, 7], tokens=24) == [5, 5, 7, 7]


def test_the_tensors_that_a_step_saves_are_counted_once_and_parameters_are_not():
    weight = torch.nn.Parameter(torch.ones(4, 4))
    values = torch.ones(3, 4)

    def step(_):
        product = torch.nn.functional.linear(values, weight)  # saves values, 48 bytes
        return (product * product).sum()  # saves the product twice, 48 bytes

    assert saved_bytes(step) == 96


def test_resident_growth_is_what_a_step_touches_and_lets_go_again():
    loss = torch.zeros(1, requires_grad=True)

    def step(_):
        return loss * torch.ones(40 * MIB // 4).sum()

    assert 39 * MIB < resident_bytes(step) < 48 * MIB


def test_what_a_layer_adds_is_told_from_the_rest():
    found = measured()
    assert 0 < found.a_layer < found.of_layers(3) < 3 * found.a_layer + 4 * 64 * 64 * 4 * 4
    assert found.of_layers(5) - found.of_layers(3) == 2 * found.a_layer
    assert measured(documents=(64,) * 128).a_layer == 16 * measured(documents=(64,) * 8).a_layer


def test_what_saves_more_tensors_takes_more():
    plain = measured().a_layer
    assert measured(MODEL.model_copy(update={"attention_dropout": 0.1})).a_layer > plain
    assert measured(MODEL.model_copy(update={"hidden_dropout": 0.1})).a_layer > plain
    assert measured(precision="bf16").a_layer < 0.7 * plain
    squares = MODEL.model_copy(update={"attention_dropout": 0.1})
    assert measured(squares, documents=(4,) * 64).a_layer < measured(squares).a_layer


def test_recomputed_layers_keep_their_input_only():
    assert measured(recompute=True).a_layer == 4 * 64 * 64 * 4
