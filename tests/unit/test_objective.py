"""A recipe's objective on real shards: what rows hold, what a step trains, and what is refused before it starts."""

from __future__ import annotations

import gzip
import itertools
import json
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_corpus import made_up_sentences, write_lines
from test_loop import records, train
from test_step import config_of, engine_of

from data_pipeline.batch import Batch
from data_pipeline.build import build_shards
from data_pipeline.corpus import open_corpus, open_folder
from data_pipeline.damage import BlockDamage, SkippedBlocks
from data_pipeline.from_recipe import loader_for
from data_pipeline.manifest import load_manifest
from data_pipeline.objective import masker_for, row_content_for
from data_pipeline.tokenizer import train_tokenizer
from trainer.check import check_recipe
from trainer.config import Config
from trainer.errors import UserError
from trainer.recipe import load_recipe
from trainer.runtime import Runtime
from trainer.setup import term_weights_for

PAIRS = ["objective.pairs=nsp", "objective.pairs=sop", "objective.negatives=2"]
CHINESE = Path(__file__).parents[3] / "shared" / "data" / "corpus_zh.jsonl.gz"


def settings(pairs: str) -> list[str]:
    return ["objective.pairs=nsp", pairs] if "negatives" in pairs else [pairs]


def first_step(recipe: Path, shards: Path, *overrides: str, world: int = 1, micro: int = 2) -> list[list[Batch]]:
    """The first step's micro-batches of each rank."""
    config = load_recipe(str(recipe), overrides=[f"train.micro_batch_size={micro}", *overrides])
    steps = []
    for rank in range(world):
        with closing(loader_for(config, open_folder(shards), dp_rank=rank, dp_world_size=world)) as loader:
            steps.append(next(loader))
    return steps


def rows_by_number(steps: list[list[Batch]]) -> dict[int, list[bytes]]:
    return {
        int(number): [array[row].tobytes() for array in batch.model_inputs().values()]
        for batch in itertools.chain.from_iterable(steps)
        for row, number in enumerate(batch.row_ids)
    }


@pytest.mark.parametrize(
    "objective",
    [
        ["objective.masking=whole_word"],
        ["objective.masking=span"],
        ["objective.mask_rate={start: 0.4, end: 0.1, rows: 20}"],
        *(settings(pairs) for pairs in PAIRS),
        ["objective.pairs=sop", "objective.masking=span", "data.augmentation={insert: 0.1, swap: 0.1, delete: 0.1}"],
        ["data.augmentation={insert: 0.2, level: sentence}"],
    ],
)
def test_the_rows_of_a_step_are_the_same_on_any_number_of_ranks_and_unlike_the_plain_ones(
    tiny_recipe: Path, sentence_shards: Path, objective: list[str]
) -> None:
    rows = rows_by_number(first_step(tiny_recipe, sentence_shards, *objective))
    assert sorted(rows) == list(range(12))
    assert rows_by_number(first_step(tiny_recipe, sentence_shards, *objective, world=3, micro=4)) == rows
    assert rows_by_number(first_step(tiny_recipe, sentence_shards)) != rows


@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("packing", ["packed", "padded"])
def test_rows_of_pairs_hold_types_and_labels_and_fit(
    tiny_recipe: Path, sentence_shards: Path, pairs: str, packing: str
) -> None:
    ((batch,),) = first_step(
        tiny_recipe, sentence_shards, *settings(pairs), f"data.packing={packing}", micro=12
    )  # fmt: skip
    assert batch.pair_labels is not None
    assert batch.token_type_ids is not None
    candidates = 3 if "negatives" in pairs else 1
    assert batch.paired_sequences == candidates * batch.pairs == np.count_nonzero(batch.pair_labels != -100)
    assert batch.pairs > 0
    assert (batch.labels[batch.pair_labels != -100] == -100).all()  # a pair's first token is never predicted
    assert set(np.unique(batch.token_type_ids)) == {0, 1}
    if packing == "padded":
        assert batch.document_ids.max() <= candidates


def test_held_out_rows_are_paired_but_never_augmented_and_masked_at_the_last_rate(
    tiny_recipe: Path, sentence_shards: Path
) -> None:
    corpus = open_folder(sentence_shards)
    overrides = ["objective.pairs=sop", "data.augmentation={delete: 0.5}"]
    rates = "objective.mask_rate={start: 0.9, end: 0.05, rows: 48}"
    config = load_recipe(str(tiny_recipe), overrides=[*overrides, rates])
    assert row_content_for(config, corpus, corpus.sources[0], training=True).augmentation is not None
    content = row_content_for(config, corpus, corpus.sources[0], training=False)
    assert content.augmentation is None
    assert content.pairs is not None
    ((plain,),) = first_step(tiny_recipe, sentence_shards, micro=12)
    unmasked = Batch(**{**vars(plain), "labels": np.full_like(plain.labels, -100), "row_ids": np.arange(12)})
    shares = [
        masker_for(config, corpus, seed=0, training=training).apply(unmasked).predicted_tokens / plain.tokens
        for training in (True, False)
    ]
    assert shares[0] > 0.6
    assert shares[1] < 0.15


@pytest.mark.parametrize("pairs", PAIRS)
def test_a_step_gives_the_same_losses_and_gradient_however_it_is_split(
    tiny_recipe: Path, sentence_shards: Path, runtime: Runtime, pairs: str
) -> None:
    found = []
    for micro, zero_stage in ((12, 1), (2, 2), (3, 0)):
        config = config_of(
            tiny_recipe, *settings(pairs), "objective.pair_weight=0.5", micro=micro, zero_stage=zero_stage
        )
        with engine_of(config, sentence_shards, runtime) as (engine, steps):
            figures = []
            for step, batches in enumerate(steps[:2]):
                sums = engine.train_step(batches, step=step, learning_rate=1e-3)
                figures += [float(part) for term in ("mlm", "pairs") for part in sums[term][:2]] + [
                    engine.gradient_norm
                ]
                # Not every micro-batch holds as many pairs: a mean of their means would be another number.
                assert float(sums["pairs"].predictions) == sum(batch.pairs for batch in batches) > 0
        found.append(figures)
    assert np.allclose(found[1], found[0], rtol=2e-6, atol=0)
    assert np.allclose(found[2], found[0], rtol=2e-6, atol=0)


def test_the_pair_weight_weighs_the_gradient_of_the_pairs(
    tiny_recipe: Path, sentence_shards: Path, runtime: Runtime
) -> None:
    norms = {}
    for weight in (1.0, 3.0):
        config = config_of(tiny_recipe, "objective.pairs=sop", f"objective.pair_weight={weight}")
        with engine_of(config, sentence_shards, runtime) as (engine, steps):
            engine.train_step(steps[0], step=0, learning_rate=1e-3)
            norms[weight] = engine.gradient_norm
    assert norms[3.0] != pytest.approx(norms[1.0], rel=1e-3)


def test_terms_and_weights_follow_the_recipe(tiny_recipe: Path) -> None:
    def weights(*overrides: str) -> dict[str, float]:
        return term_weights_for(load_recipe(str(tiny_recipe), overrides=overrides))

    assert weights() == {"mlm": 1.0}
    assert weights("objective.pairs=nsp", "objective.pair_weight=0.25") == {"mlm": 1.0, "pairs": 0.25}


def test_a_run_with_pairs_logs_evaluates_resumes_and_tells_both_terms(
    tiny_recipe: Path, sentence_shards: Path, runtime: Runtime, tmp_path: Path
) -> None:
    objective = ["objective.pairs=nsp", "objective.negatives=2", "objective.masking=span"]
    overrides = [f"data.shards={sentence_shards}", *objective]
    train(tiny_recipe, sentence_shards, runtime, tmp_path / "a", "train.steps=4", *overrides)
    train(tiny_recipe, sentence_shards, runtime, tmp_path / "b", "train.steps=2", *overrides)
    train(tiny_recipe, sentence_shards, runtime, tmp_path / "b", "train.steps=4", *overrides)
    for key in ("train/loss", "train/loss_mlm", "train/loss_pairs"):
        assert records(tmp_path / "a", key)[1] == records(tmp_path / "b", key)[1]
        assert set(records(tmp_path / "a", key)) == {1, 2, 3, 4}
    losses = [records(tmp_path / "a", f"train/loss{term}")[4] for term in ("", "_mlm", "_pairs")]
    assert losses[0] == pytest.approx(losses[1] + losses[2])
    assert losses[2] == pytest.approx(np.log(3), abs=0.1)
    assert (
        0 < records(tmp_path / "a", "train/predictions_pairs")[4] < records(tmp_path / "a", "train/predictions_mlm")[4]
    )
    for key in ("validation/loss_pairs", "validation/accuracy_pairs", "validation/accuracy_mlm"):
        assert 4 in records(tmp_path / "a", key)


def build(folder: Path, documents: list[str], *, tokenizer: Path | None = None, **options: Any) -> Path:
    text = write_lines(folder / "text.txt", documents)
    if tokenizer is None:
        tokenizer = folder / "tokenizer"
        train_tokenizer([text], out=tokenizer, vocab_size=options.pop("vocab_size", 200), progress=False)
    build_shards([text], tokenizer=tokenizer, out=folder / "shards", workers=1, progress=False, **options)
    return folder / "shards"


def resolved(recipe: Path, *overrides: str) -> Config:
    return load_recipe(str(recipe), overrides=overrides)


def test_a_damaged_first_block_says_nothing_of_pairs_where_blocks_are_left_out(
    tiny_recipe: Path, sentence_shards: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(sentence_shards, tmp_path / "shards")
    tar = folder / "train-000000.tar"
    content = bytearray(tar.read_bytes())
    with np.load(folder / "train-000000.index.npz") as index:
        content[int(index["tokens_offset"][0]) + 150] ^= 4
    tar.write_bytes(content)
    config, corpus = resolved(tiny_recipe, "objective.pairs=sop"), open_folder(folder)
    with pytest.raises(BlockDamage, match=r"the crc32 of 000000\.tokens\.npy"):
        row_content_for(config, corpus, corpus.sources[0], training=True)
    skipping = replace(corpus, skipped=SkippedBlocks())
    assert row_content_for(config, skipping, skipping.sources[0], training=True).pairs is not None


def test_next_sentences_need_several_documents_a_block_and_sentence_order_does_not(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    shards = build(tmp_path, made_up_sentences(60), block_tokens=1, validation_fraction=0.0)
    corpus = open_folder(shards)
    with pytest.raises(UserError, match=r"each of the \d+ blocks of .* holds one document; build with larger blocks"):
        row_content_for(resolved(tiny_recipe, "objective.pairs=nsp"), corpus, corpus.sources[0], training=True)
    assert row_content_for(resolved(tiny_recipe, "objective.pairs=sop"), corpus, corpus.sources[0], training=True).pairs


@pytest.mark.parametrize("pairs", PAIRS)
def test_documents_of_one_sentence_allow_no_pairs(tiny_recipe: Path, shards: Path, pairs: str) -> None:
    corpus = open_folder(shards)
    with pytest.raises(UserError, match=r"needs documents of several sentences, but none of the \d+ documents") as one:
        row_content_for(resolved(tiny_recipe, *settings(pairs)), corpus, corpus.sources[0], training=True)
    assert "\n" not in str(one.value)


def test_the_check_refuses_what_allows_no_pairs_and_counts_their_head(
    tiny_recipe: Path, shards: Path, sentence_shards: Path
) -> None:
    with pytest.raises(UserError, match="needs documents of several sentences"):
        check_recipe(resolved(tiny_recipe, "objective.pairs=sop"), world_size=1, device_type="cpu", program_bytes=0)
    plain, paired = (
        check_recipe(
            resolved(tiny_recipe, f"data.shards={sentence_shards}", *more),
            world_size=1,
            device_type="cpu",
            program_bytes=0,
        )
        for more in ([], ["objective.pairs=nsp", "objective.negatives=3"])
    )
    # The pooler and the head's two classes over a hidden size of 16.
    assert paired.weights.parameters - plain.weights.parameters == 16 * 16 + 16 + 2 * 16 + 2
    assert plain.rows is not None
    assert paired.rows is not None
    assert paired.rows[0].rows_an_epoch > 4 * plain.rows[0].rows_an_epoch


@pytest.mark.skipif(not CHINESE.exists(), reason="needs the Chinese text of ../shared/data")
@pytest.mark.parametrize("masking", ["whole_word", "span"])
def test_words_of_a_language_without_spaces_are_not_guessed(tiny_recipe: Path, tmp_path: Path, masking: str) -> None:
    with gzip.open(CHINESE, "rt", encoding="utf-8") as file:
        documents = [json.loads(line)["text"].replace("\n", " ") for line in itertools.islice(file, 400)]
    shards = build(tmp_path, documents, vocab_size=3000, validation_fraction=0.0)
    corpus = open_folder(shards)
    with pytest.raises(UserError, match=r"stores no words and only \d+\.\d% of its vocabulary's pieces begin one"):
        masker_for(resolved(tiny_recipe, f"objective.masking={masking}"), corpus, seed=0)
    assert masker_for(resolved(tiny_recipe), corpus, seed=0)


@pytest.mark.parametrize("masking", ["whole_word", "span"])
def test_words_that_a_segmenter_found_are_masked_whole(tiny_recipe: Path, tmp_path: Path, masking: str) -> None:
    pytest.importorskip("jieba", reason="needs jieba: pip install 'bertline[zh]'")
    documents = ["我们今天学习语言模型。", "明天天气预报说会下雨。", "他们喜欢在图书馆看书。"] * 40
    shards = build(tmp_path, documents, vocab_size=33, validation_fraction=0.0, word_starts="jieba")
    assert load_manifest(shards).fields[-1] == "words"
    ((batch,),) = first_step(
        tiny_recipe, shards, f"objective.masking={masking}", "objective.mask_rate=0.5", micro=12
    )  # fmt: skip
    assert batch.word_starts is not None
    chosen, words = batch.labels != -100, np.cumsum(batch.word_starts.ravel()).reshape(batch.labels.shape)
    inner = chosen | (np.where(chosen, batch.labels, batch.input_ids) > 4)
    hits = np.bincount(words[inner], weights=chosen[inner])
    sizes = np.bincount(words[inner])
    assert set(np.unique(hits[sizes > 0] / sizes[sizes > 0])) == {0.0, 1.0}
    assert sizes.max() > 1


def test_in_a_mixture_all_rows_carry_word_starts_where_one_source_stores_them(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    pytest.importorskip("jieba", reason="needs jieba: pip install 'bertline[zh]'")
    first, second = tmp_path / "zh", tmp_path / "en"
    first.mkdir()
    second.mkdir()
    documents = [*made_up_sentences(60), *["我们今天学习语言模型。", "明天天气预报说会下雨。"] * 30]
    chinese = build(first, documents, vocab_size=120, validation_fraction=0.0, word_starts="jieba")
    english = build(second, made_up_sentences(60), tokenizer=first / "tokenizer", validation_fraction=0.0)
    config = load_recipe(
        str(tiny_recipe),
        overrides=[
            "data.shards=null",
            f"data.sources=[{{name: a, weight: 1, shards: {chinese}}}, {{name: b, weight: 1, shards: {english}}}]",
            "objective.masking=whole_word",
            "train.micro_batch_size=12",
        ],
    )
    corpus = open_corpus(config.data.all_sources, [chinese, english])
    with closing(loader_for(config, corpus, dp_rank=0, dp_world_size=1)) as loader:
        (batch,) = next(loader)
    assert set(batch.row_sources) == {0, 1}
    assert batch.word_starts is not None
    assert all(starts.any() for starts in batch.word_starts)
