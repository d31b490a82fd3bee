"""Sentence pairs: what A and B are, how often B is another's, and that no draw changes the number of rows."""

import itertools

import numpy as np
import pytest

from data_pipeline.batch import assemble
from data_pipeline.packing import count_rows, plan_rows
from data_pipeline.pairs import PairRule
from data_pipeline.row_content import RowContent
from data_pipeline.shards import Block
from data_pipeline.vocabulary import Vocabulary

CLS, SEP, END, VOCAB = 2, 3, 9, 60_000
NSP, SOP, RANKED = PairRule("nsp"), PairRule("sop"), PairRule("nsp", negatives=3)
RULES = [NSP, SOP, RANKED]


def vocabulary(*, ends=(END,), words=()):
    tables = np.zeros((2, VOCAB), dtype=bool)
    tables[0, list(words)] = True
    tables[1, list(ends)] = True
    return Vocabulary(*tables)


def block_of(lengths, *, sentence=0):
    """Documents of distinct tokens 1000, 1001, ...; with `sentence`, every so many tokens one ends."""
    tokens = 1000 + np.arange(sum(lengths))
    if sentence:
        starts = np.cumsum(lengths) - lengths
        for start, length in zip(starts, lengths, strict=True):
            tokens[start + sentence - 1 : start + length : sentence] = END
            tokens[start + length - 1] = END
    return Block(tokens.astype(np.uint16), np.array(lengths, dtype=np.uint32))


def pairs_of(block, rule, *, max_seq_len=64, packing="packed", tables=None, epoch=0, seed=0):
    """(row, A, B, label, document) of every sequence, B None where there is no pair; and the packed block."""
    plan = plan_rows(
        block.lengths, max_seq_len=max_seq_len, packing=packing, seed=seed, phase=0, epoch=epoch, block=0,
        shape=rule.shape,
    )  # fmt: skip
    packed = RowContent(tables or vocabulary(), rule).lay_out(
        block, plan, key=(seed, 0, epoch, 0), cls_id=CLS, sep_id=SEP
    )
    found = []
    borders = np.concatenate([[0], np.cumsum(packed.piece_lengths)])
    row_of = np.searchsorted(packed.piece_starts, np.arange(len(packed.piece_lengths)), side="right") - 1
    for number, (start, end) in enumerate(itertools.pairwise(borders)):
        tokens, types = packed.tokens[start:end].tolist(), packed.token_types.between(start, end).astype(int).tolist()
        assert (tokens[0], tokens[-1], types[0]) == (CLS, SEP, 0)
        first = types.count(0)
        assert types == [0] * first + [1] * (len(types) - first)
        b = tokens[first:-1] if first < len(types) else None
        assert tokens[first - 1] == SEP
        label, document = int(packed.pair_labels[number]), int(packed.piece_documents[number])
        found.append((int(row_of[number]), tokens[1 : first - 1], b, label, document))
    return found, packed


def test_an_order_pair_is_the_piece_cut_in_two_or_the_same_swapped():
    block = block_of([12, 20, 30])
    found, _ = pairs_of(block, SOP)
    starts = {0: 1000, 1: 1012, 2: 1032}
    for _, a, b, label, document in found:
        whole = a + b if label == 0 else b + a
        assert whole == list(range(starts[document], starts[document] + len(whole)))
        assert min(len(a), len(b)) >= 1


@pytest.mark.parametrize(("rule", "label"), [(NSP, 1), (SOP, 1)])
def test_a_half_of_the_pairs_is_replaced_or_swapped_within_three_sigma(rule, label):
    labels = np.array([pair[3] for epoch in range(20) for pair in pairs_of(block_of([9] * 200), rule, epoch=epoch)[0]])
    assert abs((labels == label).mean() - 0.5) < 3 * 0.5 / np.sqrt(labels.size)


def test_a_replaced_segment_is_as_long_a_stretch_of_another_document():
    block = block_of([20, 30, 40])
    found = [pair for epoch in range(60) for pair in pairs_of(block, NSP, epoch=epoch)[0]]
    bounds = [(1000, 1020), (1020, 1050), (1050, 1090)]
    sources = set()
    for _, a, b, label, document in found:
        low, high = bounds[document]
        assert a == list(range(low, low + len(a)))
        assert b == list(range(b[0], b[0] + len(b)))
        source = next(number for number, (start, end) in enumerate(bounds) if start <= b[0] < end)
        assert b[-1] < bounds[source][1]
        if label == 0:
            assert (source, b[-1]) == (document, high - 1)
        else:
            assert source != document
            # As long as the true one, or the whole of a shorter document.
            assert len(b) == min(high - low - len(a), bounds[source][1] - bounds[source][0])
            sources.add((document, source))
    assert sources == {(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)}


def test_every_other_document_is_drawn_alike_within_three_sigma():
    block = block_of([8] * 5)
    drawn = [
        (b[0] - 1000) // 8
        for epoch in range(400)
        for _, _, b, label, document in pairs_of(block, NSP, epoch=epoch)[0]
        if label == 1 and document == 0
    ]
    assert 0 not in drawn
    for other in (1, 2, 3, 4):
        assert abs(drawn.count(other) / len(drawn) - 0.25) < 3 * np.sqrt(0.25 * 0.75 / len(drawn))


@pytest.mark.parametrize("rule", [NSP, RANKED])
def test_segments_end_where_sentences_end(rule):
    found, _ = pairs_of(block_of([40, 60, 50, 80] * 5, sentence=10), rule, max_seq_len=400)
    for _, a, b, _, _ in found:
        assert a[-1] == b[-1] == END
        assert len(a) % 10 == len(b) % 10 == 0


def test_a_drawn_segment_ends_with_a_sentence_where_the_true_one_does_and_only_there():
    tokens = 1000 + np.arange(150)
    tokens[9:40:10] = tokens[46:82:7] = END  # sentences of 10 tokens, then of 7; the last document has none
    block = Block(tokens.astype(np.uint16), np.array([40, 42, 68], dtype=np.uint32))
    found = [pair for epoch in range(80) for pair in pairs_of(block, NSP, epoch=epoch, max_seq_len=100)[0]]
    drawn = [(document, b) for _, _, b, label, document in found if label == 1 and len(b) > 10]
    from_the_second = [b for document, b in drawn if document == 0 and b[0] < 1082]
    assert from_the_second
    assert all(b[-1] == END and len(b) % 7 == 0 for b in from_the_second)
    assert any(b[-1] != END for document, b in drawn if document == 2)


def test_without_sentences_a_piece_is_cut_before_a_word_and_without_words_anywhere():
    block = block_of([40] * 50)
    words = vocabulary(ends=(), words=range(1000, 3000, 8))
    firsts = [b[0] for _, _, b, _, _ in pairs_of(block, SOP, tables=words)[0]]
    swapped = [a[0] for _, a, _, label, _ in pairs_of(block, SOP, tables=words)[0] if label]
    assert {first % 8 for first in firsts + swapped} == {0}
    nothing = vocabulary(ends=())
    lengths = [len(a) for epoch in range(40) for _, a, _, _, _ in pairs_of(block, SOP, tables=nothing, epoch=epoch)[0]]
    counts = np.bincount(lengths, minlength=40)[1:]
    assert len(counts) == 39
    assert counts.min() > 0


def test_stored_word_starts_go_before_the_vocabularys():
    block = block_of([40] * 20)
    stored = Block(block.tokens, block.lengths, word_starts=np.arange(800) % 5 == 0)
    found, packed = pairs_of(stored, SOP, tables=vocabulary(ends=(), words=range(1000, 3000, 8)))
    assert {(b if label == 0 else a)[0] % 5 for _, a, b, label, _ in found} == {0}
    special = np.isin(packed.tokens, [CLS, SEP])
    word_starts = packed.word_starts.between(0, len(packed.tokens))
    assert word_starts[special].all()
    assert np.array_equal(word_starts[~special], packed.tokens[~special] % 5 == 0)


def test_with_negatives_each_piece_has_all_its_candidates_side_by_side_in_one_row():
    block = block_of([9, 12, 7, 15, 11] * 8)
    found, _ = pairs_of(block, RANKED, max_seq_len=80)
    assert len(found) == 4 * 40
    places = []
    for group in (found[start : start + 4] for start in range(0, len(found), 4)):
        assert len({(row, tuple(a), document) for row, a, _, _, document in group}) == 1
        labels = [label for _, _, _, label, _ in group]
        assert sorted(labels) == [0, 1, 1, 1]
        places.append(labels.index(0))
        _, a, b, _, _ = group[places[-1]]
        assert b[0] == a[-1] + 1
        assert all(other[2][0] != b[0] for other in group if other[3] == 1)
    assert set(places) == {0, 1, 2, 3}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("packing", ["packed", "padded"])
def test_rows_are_as_many_as_the_lengths_say_and_never_too_long(rule, packing):
    lengths = np.random.default_rng(0).integers(1, 90, 60).tolist()
    for epoch in range(3):
        _, packed = pairs_of(block_of(lengths, sentence=6), rule, packing=packing, epoch=epoch)
        assert len(packed.token_starts) - 1 == count_rows(lengths, max_seq_len=64, packing=packing, shape=rule.shape)
        assert np.diff(packed.token_starts).max() <= 64


@pytest.mark.parametrize("rule", RULES)
def test_a_piece_of_one_token_is_no_pair(rule):
    found, packed = pairs_of(block_of([1, 1, 1]), rule)
    assert [(a, b, label) for _, a, b, label, _ in sorted(found, key=lambda pair: pair[1])] == [
        ([1000], None, -100), ([1001], None, -100), ([1002], None, -100),
    ]  # fmt: skip
    batch = assemble(np.array([0]), [(packed, 0)], max_seq_len=64, pad_id=0, candidates=rule.candidates)
    assert (batch.pairs, batch.paired_sequences, batch.term_counts()) == (0, 0, {"mlm": 0, "pairs": 0})


@pytest.mark.parametrize("rule", [NSP, RANKED])
def test_a_block_of_one_document_has_no_one_to_draw_from(rule):
    found, _ = pairs_of(block_of([150]), rule)
    assert {(b, label) for _, _, b, label, _ in found} == {(None, -100)}
    assert sorted(token for _, a, _, _, _ in found for token in a) == list(range(1000, 1150))


def test_a_batch_holds_types_and_labels_at_the_first_tokens():
    _, packed = pairs_of(block_of([5, 1, 4]), SOP, max_seq_len=40)
    batch = assemble(np.array([7, -1]), [(packed, 0), None], max_seq_len=40, pad_id=0, candidates=1)
    at = np.flatnonzero(batch.pair_labels[0] != -100)
    assert (batch.input_ids[0, at] == CLS).all()
    assert len(at) == batch.pairs == batch.paired_sequences == 2
    assert (batch.pair_labels[1] == -100).all()
    assert not batch.token_type_ids[1].any()
    seconds = batch.token_type_ids[0] == 1
    assert (batch.input_ids[0, seconds] == SEP).sum() == 2
    assert {"token_type_ids", "pair_labels"} <= set(batch.model_inputs())


@pytest.mark.parametrize("rule", RULES)
def test_pairs_are_repeatable_and_new_in_each_epoch_and_seed(rule):
    block = block_of([20] * 30)
    one, again, epoch, seed = (
        sorted(map(str, pairs_of(block, rule, **key)[0])) for key in ({}, {}, {"epoch": 1}, {"seed": 1})
    )
    assert one == again
    assert one != epoch
    assert one != seed
