from types import SimpleNamespace

import numpy as np
import torch

from data_pipeline.batch import IGNORED_LABEL, Batch
from trainer.example_fills import fills_as_markdown

PIECES = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "▁the", "▁a|b", "s", "▁"]
TOKENIZER = SimpleNamespace(cls_id=1, sep_id=2, mask_id=3, pieces=lambda: PIECES)
NO = IGNORED_LABEL


def rows(input_ids, labels):
    ids = np.array(input_ids, dtype=np.int32)
    return Batch(
        row_ids=np.arange(len(ids)) + 10,
        input_ids=ids,
        position_ids=np.zeros_like(ids),
        document_ids=(ids > 0).astype(np.int32),
        labels=np.array(labels, dtype=np.int64),
        tokens=0,
        predicted_tokens=0,
        sum_squared_lengths=0,
    )


def test_a_row_shows_its_places_what_was_there_and_what_the_model_says():
    batch = rows([[1, 4, 3, 6, 2, 0]], [[NO, NO, 5, 6, NO, NO]])
    logits = torch.full((1, 6, 8), -100.0)
    logits[0, 2, [4, 5, 6, 7]] = torch.tensor([0.5, 0.25, 0.15, 0.1]).log()
    logits[0, 3, 6] = 100.0
    lines = fills_as_markdown(batch, logits, tokenizer=TOKENIZER).splitlines()
    assert lines[0] == r"**Row 10.** the **[1]** **[2]** ¶"
    assert lines[2:4] == ["| place | given | written | predicted |", "|---|---|---|---|"]
    assert lines[4] == r"| 1 | \[MASK\] |  a\|b | the 50%, **a\|b** 25%, s 15%, ▁ 10% |"
    assert lines[5].startswith("| 2 | s | s | **s** 100%,")


def test_a_row_in_which_nothing_is_predicted_is_left_out():
    assert fills_as_markdown(rows([[1, 4, 2]], [[NO] * 3]), torch.zeros(1, 3, 8), tokenizer=TOKENIZER) == ""
