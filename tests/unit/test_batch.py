import itertools

import numpy as np

from data_pipeline.batch import assemble, frame_rows
from data_pipeline.packing import plan_rows
from data_pipeline.sequences import plain_sequences

CLS, SEP, PAD = 2, 3, 0


def packed_block(lengths, *, max_seq_len=8, packing="packed"):
    tokens = np.concatenate([np.arange(n) + 100 * (d + 1) for d, n in enumerate(lengths)]).astype(np.uint16)
    plan = plan_rows(lengths, max_seq_len=max_seq_len, packing=packing, seed=0, phase=0, epoch=0, block=0)
    return frame_rows(tokens, plain_sequences(plan), cls_id=CLS, sep_id=SEP)


def test_pieces_are_framed_and_keep_their_tokens_in_order():
    block = packed_block([9, 2])
    rows = [block.tokens[a:b].tolist() for a, b in itertools.pairwise(block.token_starts)]
    assert sorted(rows) == [
        [CLS, 100, 101, 102, 103, 104, 105, SEP],
        [CLS, 106, 107, 108, SEP],
        [CLS, 200, 201, SEP],
    ]


def test_a_batch_numbers_documents_and_restarts_positions():
    block = packed_block([2, 2])
    assert len(block.token_starts) == 2  # both fit one row of 8
    batch = assemble(np.array([7, -1]), [(block, 0), None], max_seq_len=10, pad_id=PAD)
    assert batch.document_ids.tolist() == [[1, 1, 1, 1, 2, 2, 2, 2, 0, 0], [0] * 10]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3, 0, 0], [0] * 10]
    assert batch.input_ids[0, [0, 3, 4, 7, 8, 9]].tolist() == [CLS, SEP, CLS, SEP, PAD, PAD]
    assert sorted(batch.input_ids[0, [1, 2, 5, 6]].tolist()) == [100, 101, 200, 201]
    assert (batch.tokens, batch.predicted_tokens, batch.sum_squared_lengths) == (8, 0, 32)
    assert (batch.labels == -100).all()
    assert batch.row_ids.tolist() == [7, -1]


def test_a_full_row_has_no_padding():
    block = packed_block([6])
    batch = assemble(np.array([0]), [(block, 0)], max_seq_len=8, pad_id=PAD)
    assert batch.document_ids.tolist() == [[1] * 8]
    assert batch.position_ids.tolist() == [list(range(8))]


def test_a_batch_of_empty_rows_is_all_padding():
    batch = assemble(np.array([-1, -1]), [None, None], max_seq_len=4, pad_id=PAD)
    assert batch.tokens == 0
    assert batch.document_ids.tolist() == [[0] * 4] * 2


def test_without_pairs_and_stored_words_a_batch_has_neither():
    batch = assemble(np.array([0]), [(packed_block([6]), 0)], max_seq_len=8, pad_id=PAD)
    assert (batch.word_starts, batch.token_type_ids, batch.pair_labels) == (None, None, None)
    assert set(batch.model_inputs()) == {"input_ids", "position_ids", "document_ids", "labels"}
    assert batch.term_counts() == {"mlm": 0}
