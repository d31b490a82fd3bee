"""Augmentation: each rate within three sigma, nothing else changed, pieces never longer than they were."""

import numpy as np
import pytest

from data_pipeline.augmentation import Augmentation, augment_pieces
from data_pipeline.packing import cut_documents, plan_rows
from data_pipeline.row_content import RowContent
from data_pipeline.shards import Block
from data_pipeline.vocabulary import Vocabulary

KEY = (0, 0, 0, 0)
NO_SENTENCES = np.zeros(0, dtype=np.int64)


def augment(lengths, *, sentence=0, key=KEY, max_seq_len=10**6, **rule):
    """The texts of the pieces as places in the former text."""
    pieces = cut_documents(lengths, max_seq_len=max_seq_len)
    borders = np.arange(sentence, sum(lengths) + 1, sentence) if sentence else NO_SENTENCES
    level = "sentence" if sentence else "token"
    new, source = augment_pieces(pieces, sentence_borders=borders, rule=Augmentation(level, **rule), key=key)
    assert np.array_equal(new.document, pieces.document)
    assert (new.length <= pieces.length).all()
    assert (new.length >= 1).all()
    return np.split(source, np.cumsum(new.length)[:-1])


def within_three_sigma(share, rate, draws):
    return abs(share - rate) < 3 * np.sqrt(rate * (1 - rate) / draws)


@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_tokens_are_deleted_with_their_rate_and_the_rest_keeps_its_order(rate):
    (text,) = augment([50_000], delete=rate)
    assert (np.diff(text) > 0).all()
    assert within_three_sigma(1 - len(text) / 50_000, rate, 50_000)


def test_a_piece_that_would_lose_all_keeps_its_first():
    texts = augment([2] * 2000, delete=0.9)
    assert all(len(text) >= 1 for text in texts)
    alone = sum(text.tolist() == [2 * number] for number, text in enumerate(texts))
    # Both lost, or only the second.
    assert within_three_sigma(alone / 2000, 0.81 + 0.09, 2000)


@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_tokens_are_swapped_two_by_two_with_their_rate(rate):
    (text,) = augment([50_000], swap=rate)
    assert sorted(text) == list(range(50_000))
    moved = np.flatnonzero(text != np.arange(50_000))
    assert within_three_sigma(len(moved) / 50_000, rate, 50_000)
    assert np.array_equal(text[text[moved]], moved)


def test_tokens_are_swapped_within_their_piece():
    texts = augment([7] * 500, swap=0.5)
    assert all(sorted(text) == list(range(7 * number, 7 * number + 7)) for number, text in enumerate(texts))


@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_tokens_of_the_whole_block_are_inserted_with_their_rate_and_push_out_the_end(rate):
    (text,) = augment([50_000], insert=rate)
    assert len(text) == 50_000
    original = np.isin(np.arange(len(text)), _in_order(text))
    # Of n tokens that stay, n * rate are inserted between them.
    kept = int(original.sum())
    assert within_three_sigma((50_000 - kept) / kept, rate, kept)
    inserted = text[~original]
    assert abs(inserted.mean() - 25_000) < 3 * 50_000 / np.sqrt(12 * len(inserted))


def _in_order(text):
    """Places of the tokens 0, 1, 2, ... one behind the other: what is not inserted."""
    places, wanted = [], 0
    for place, token in enumerate(text.tolist()):
        if token == wanted:
            places.append(place)
            wanted += 1
    return places


def test_sentences_are_deleted_swapped_and_inserted_whole():
    for rule in ({"delete": 0.2}, {"swap": 0.2}, {"insert": 0.2}):
        (text,) = augment([50_000], sentence=10, **rule)
        whole = text[: len(text) // 10 * 10].reshape(-1, 10)
        assert (np.diff(whole, axis=1) == 1).all()
        assert (whole[:, 0] % 10 == 0).all()
    (deleted,) = augment([50_000], sentence=10, delete=0.2)
    assert within_three_sigma(1 - len(deleted) / 50_000, 0.2, 5000)
    (swapped,) = augment([50_000], sentence=10, swap=0.2)
    assert within_three_sigma((swapped[::10] != np.arange(0, 50_000, 10)).mean(), 0.2, 5000)
    (inserted,) = augment([50_000], sentence=10, insert=0.2)
    kept = len(_in_order(inserted[::10] // 10))
    assert within_three_sigma((5000 - kept) / kept, 0.2, kept)


@pytest.mark.parametrize("rule", [{"delete": 0.2}, {"swap": 0.2}, {"insert": 0.2}])
def test_each_rate_is_repeatable_and_keyed(rule):
    first, again, other = (np.concatenate(augment([300] * 3, key=key, **rule)) for key in (KEY, KEY, (0, 0, 1, 0)))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_all_rates_together_never_outgrow_a_row():
    lengths = np.random.default_rng(0).integers(1, 100, 200).tolist()
    augment(lengths, insert=0.5, swap=0.3, delete=0.2, max_seq_len=32)
    augment(lengths, sentence=7, insert=0.5, swap=0.3, delete=0.2, max_seq_len=32)


def test_rows_hold_the_disturbed_text_and_its_word_starts():
    tokens = (1000 + np.arange(200)).astype(np.uint16)
    block = Block(tokens, np.array([50] * 4, dtype=np.uint32), word_starts=tokens % 4 == 0)
    plan = plan_rows(block.lengths, max_seq_len=52, packing="packed", seed=0, phase=0, epoch=0, block=0)
    tables = Vocabulary(np.zeros(2000, dtype=bool), np.zeros(2000, dtype=bool))
    content = RowContent(tables, augmentation=Augmentation("token", delete=0.3))
    packed = content.lay_out(block, plan, key=KEY, cls_id=2, sep_id=3)
    body = packed.tokens > 3
    assert within_three_sigma(1 - body.sum() / 200, 0.3, 200)
    assert np.array_equal(packed.word_starts.between(0, len(packed.tokens))[body], packed.tokens[body] % 4 == 0)
    assert len(packed.token_starts) == 5
