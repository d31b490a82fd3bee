import pytest

from trainer.config import ModelConfig
from trainer.flops import model_flops

TINY = ModelConfig(hidden_size=2, num_layers=3, num_heads=1, intermediate_size=5, vocab_size=7)


def matmul(rows, inner, columns):
    return 2 * rows * inner * columns


def test_flops_equal_a_count_of_every_matrix_product():
    documents, predicted = (4, 1, 2), 3
    tokens = sum(documents)
    attention = sum(matmul(length, 2, length) + matmul(length, length, 2) for length in documents)
    layer = 4 * matmul(tokens, 2, 2) + matmul(tokens, 2, 5) + matmul(tokens, 5, 2) + attention
    last = 3 * matmul(tokens, 2, 2) + attention
    last += matmul(predicted, 2, 2) + matmul(predicted, 2, 5) + matmul(predicted, 5, 2)
    head = matmul(predicted, 2, 2) + matmul(predicted, 2, 7)
    found = model_flops(TINY, tokens=tokens, sum_squared_document_lengths=4**2 + 1 + 2**2, predicted_tokens=predicted)
    assert found == 3 * (2 * layer + last + head) == 5796


def test_a_pair_costs_its_first_token_the_pooler_and_the_pair_head():
    counts = {"tokens": 7, "sum_squared_document_lengths": 21, "predicted_tokens": 3}
    last_layer = matmul(4, 2, 2) + matmul(4, 2, 5) + matmul(4, 5, 2)
    found = model_flops(TINY, **counts, paired_sequences=4) - model_flops(TINY, **counts)
    assert found == 3 * (last_layer + matmul(4, 2, 2) + matmul(4, 2, 2)) == 768


def test_bert_base_with_every_token_predicted_agrees_with_six_flops_a_parameter_and_token():
    base = ModelConfig(vocab_size=30522)
    found = model_flops(base, tokens=512, sum_squared_document_lengths=0, predicted_tokens=512)
    assert found == 6 * 512 * (12 * (4 * 768**2 + 2 * 768 * 3072) + 768**2 + 768 * 30522)


def test_a_model_without_its_vocabulary_is_refused():
    with pytest.raises(ValueError, match="vocab_size"):
        model_flops(ModelConfig(), tokens=1, sum_squared_document_lengths=1, predicted_tokens=0)
