from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.batch import Batch
from data_pipeline.corpus import open_folder
from data_pipeline.hashing import Int64Array
from data_pipeline.manifest import load_manifest
from data_pipeline.masking import TokenMasker
from data_pipeline.reader import RowReader
from data_pipeline.shards import BlockStore
from trainer.evaluate import Validation, perplexity, plain_eval_step
from trainer.model.create import create_model
from trainer.model.loss_term import LossTerm
from trainer.recipe import load_recipe
from trainer.setup import resolve, validation_for
from trainer.step_sums import StepSums

CLS, SEP, MASK = 2, 3, 4


class FixedReader:
    """Rows of [CLS] x x x [SEP], given by their three tokens."""

    def __init__(self, rows: list[list[int]]) -> None:
        self._rows = np.array([[CLS, *row, SEP] for row in rows], dtype=np.int32)
        self.rows_before_repeat = len(rows)

    def read(self, numbers: Int64Array) -> Batch:
        present = (numbers >= 0)[:, None]
        ids = np.where(present, self._rows[numbers], 0).astype(np.int32)
        documents = np.repeat(present.astype(np.int32), 5, axis=1)
        labels = np.full(ids.shape, -100, dtype=np.int64)
        return Batch(numbers, ids, np.zeros_like(ids), documents, labels, int(documents.sum()), 0, 0)


def masker(mask_rate: float) -> TokenMasker:
    return TokenMasker(
        vocab_size=10,
        special_ids=[0, 1, CLS, SEP, MASK],
        mask_id=MASK,
        mask_rate=mask_rate,
        mask_token_rate=0.8,
        random_token_rate=0.1,
        seed=0,
    )


def test_the_baseline_counts_the_tokens_that_may_be_predicted() -> None:
    reader = FixedReader([[5, 5, 5], [6, 5, 7]])
    validation = Validation(reader, masker(1 - 1e-9), max_rows=9, micro_batch_size=4)  # type: ignore[arg-type]
    baseline = validation.unigram_baseline(vocab_size=10)
    # Four times 5, once 6, once 7; masked at a rate of 1 all of them are predicted.
    assert baseline.entropy == pytest.approx(-(4 / 6 * math.log(4 / 6) + 2 * (1 / 6) * math.log(1 / 6)))
    assert baseline.most_frequent_rate == pytest.approx(4 / 6)


def test_only_the_first_rows_are_evaluated() -> None:
    reader = FixedReader([[5, 5, 5], [6, 6, 6], [7, 8, 9]])
    validation = Validation(reader, masker(0.5), max_rows=1, micro_batch_size=2)  # type: ignore[arg-type]
    assert validation.unigram_baseline(vocab_size=10).entropy in (0.0, pytest.approx(math.log(3)))


def test_losses_are_summed_and_divided_once() -> None:
    reader = FixedReader([[5, 5, 5], [6, 5, 7], [8, 8, 9]])
    validation = Validation(reader, masker(1 - 1e-9), max_rows=3, micro_batch_size=2)  # type: ignore[arg-type]
    polled = []

    def step(batch: Batch) -> StepSums:
        predicted = float(batch.predicted_tokens)
        # 2 nats a token in the first batch, 5 in the second; every third token is hit.
        nats = 2.0 if batch.row_ids[0] == 0 else 5.0
        sums = (torch.tensor(value, dtype=torch.float64) for value in (nats * predicted, predicted, 3.0))
        return {"mlm": LossTerm(*sums)}

    result = validation.run(step, poll=lambda: polled.append(1))
    assert result.masked.predictions == 9
    assert result.loss == pytest.approx((6 * 2 + 3 * 5) / 9)
    assert result.masked.accuracy == pytest.approx(6 / 9)
    assert len(polled) == 2


def test_without_a_predicted_token_nothing_is_divided_by_zero() -> None:
    reader = FixedReader([[CLS, SEP, MASK]])
    validation = Validation(reader, masker(0.5), max_rows=1, micro_batch_size=1)  # type: ignore[arg-type]
    result = validation.run(lambda batch: {"mlm": LossTerm(*torch.zeros(3, dtype=torch.float64))})
    assert (result.loss, result.masked.accuracy, result.masked.predictions) == (0.0, 0.0, 0)
    baseline = validation.unigram_baseline(vocab_size=10)
    assert (baseline.entropy, baseline.most_frequent_rate) == (0.0, 0.0)


@pytest.mark.parametrize(("world", "micro"), [(1, 3), (2, 1), (2, 4), (3, 2)])
def test_the_result_is_the_same_for_any_number_of_ranks_and_rows_a_batch(
    shards: Path, tiny_recipe: Path, world: int, micro: int
) -> None:
    manifest = load_manifest(shards)
    config = resolve(load_recipe(str(tiny_recipe), overrides=[f"train.micro_batch_size={micro}"]), manifest)
    step = plain_eval_step(create_model(config.model, seed=1), device=torch.device("cpu"))
    results = []
    for rank in range(world):
        validation = validation_for(config, open_folder(shards), dp_rank=rank, dp_world_size=world)
        assert validation is not None
        results.append(validation.run(step))
    predicted = sum(result.masked.predictions for result in results)
    loss = sum(result.loss * result.masked.predictions for result in results) / predicted
    reader = RowReader(
        BlockStore(shards, manifest=manifest, split="validation"), max_seq_len=32, packing="packed", lanes=12, seed=0
    )
    special = manifest.special_token_ids
    plain = TokenMasker(
        vocab_size=300,
        special_ids=sorted(special.values()),
        mask_id=special["mask"],
        mask_rate=0.15,
        mask_token_rate=0.8,
        random_token_rate=0.1,
        seed=0,
    )
    expected = step(plain.apply(reader.read(np.arange(10))))["mlm"]
    assert predicted == int(expected.predictions)
    assert loss == pytest.approx(float(expected.loss) / predicted, rel=1e-6)


def test_evaluating_twice_gives_the_same_bits(shards: Path, tiny_recipe: Path) -> None:
    manifest = load_manifest(shards)
    config = resolve(load_recipe(str(tiny_recipe)), manifest)
    validation = validation_for(config, open_folder(shards))
    assert validation is not None
    step = plain_eval_step(create_model(config.model, seed=1), device=torch.device("cpu"))
    assert validation.run(step) == validation.run(step)


def test_perplexity_never_overflows() -> None:
    assert perplexity(math.log(7.0)) == pytest.approx(7.0)
    assert perplexity(1e4) == math.inf
