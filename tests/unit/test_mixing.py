from __future__ import annotations

from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_corpus import made_up_documents, small_tokenizer, write_lines

from data_pipeline.build import build_shards
from data_pipeline.corpus import Corpus, open_corpus
from data_pipeline.from_recipe import loader_for, reader_for
from data_pipeline.mixing import RowDealer
from data_pipeline.tokenizer import train_tokenizer
from trainer.config import Config, DataConfig, TrainConfig
from trainer.data_config import SourceConfig
from trainer.errors import UserError

LANES = 24


def dealt(dealer: RowDealer, rows: object) -> list[tuple[int, int]]:
    found = dealer.deal(np.asarray(rows, dtype=np.int64))
    return list(zip(found.source.tolist(), found.row.tolist(), strict=True))


weights = st.lists(st.integers(1, 10**30), min_size=1, max_size=6).map(lambda parts: [Fraction(part) for part in parts])


def test_two_sources_take_turns_by_their_weights() -> None:
    dealer = RowDealer([Fraction("0.75"), Fraction("0.25")], lanes=1)
    assert dealt(dealer, range(8)) == [(1, 0), (0, 0), (0, 1), (0, 2), (1, 1), (0, 3), (0, 4), (0, 5)]


@given(weights=weights, lanes=st.integers(1, 30), turns=st.integers(1, 12))
def test_each_row_of_a_source_is_dealt_once_and_in_its_own_lane(
    weights: list[Fraction], lanes: int, turns: int
) -> None:
    found = dealt(RowDealer(weights, lanes=lanes), range(turns * lanes))
    assert len(set(found)) == len(found)
    for number, (_, row) in enumerate(found):
        assert row % lanes == number % lanes
    for source in range(len(weights)):
        for lane in range(lanes):
            rows = [row for s, row in found[lane::lanes] if s == source]
            assert rows == list(range(lane, lane + len(rows) * lanes, lanes))


@given(weights=weights, first=st.integers(0, 10**15), lanes=st.integers(1, 40))
def test_a_row_does_not_depend_on_what_else_is_asked(weights: list[Fraction], first: int, lanes: int) -> None:
    rows = [first + 3, first, first + 17]
    fresh = [dealt(RowDealer(weights, lanes=lanes), [row])[0] for row in rows]
    assert dealt(RowDealer(weights, lanes=lanes), rows) == fresh


@given(weights=weights, turns=st.integers(1, 10**15), lanes=st.sampled_from([1, 12, 60]))
def test_however_long_the_run_is_a_source_is_within_its_bound_of_its_share(
    weights: list[Fraction], turns: int, lanes: int
) -> None:
    # The next turn of each lane tells how many rows each source has had in it before; exact, no float is in it.
    dealer, total = RowDealer(weights, lanes=lanes), sum(weights)
    counts = [0] * len(weights)
    left = np.full(lanes, turns, dtype=object)
    for source in range(len(weights)):
        last = source == len(weights) - 1
        own = left if last else dealer._taken(source, left, np.arange(lanes))
        counts[source] = sum(own)
        left = left - own
    assert sum(counts) == turns * lanes
    for source, (count, weight) in enumerate(zip(counts, weights, strict=True)):
        assert abs(count - turns * lanes * weight / total) < (source + 1) * lanes
    assert abs(counts[0] - turns * lanes * weights[0] / total) < 1


def test_in_practice_the_shares_hold_within_a_few_rows_at_every_row() -> None:
    shares = [Fraction(part, 100) for part in (50, 29, 20, 1)]
    found = RowDealer(shares, lanes=960).deal(np.arange(20 * 960))
    for source, share in enumerate(shares):
        deviation = np.cumsum(found.source == source) - np.arange(1, 20 * 960 + 1) * float(share)
        assert np.abs(deviation).max() < 16


@settings(deadline=None)
@given(weights=weights, limits=st.data(), lanes=st.integers(1, 30))
def test_the_rows_before_a_source_runs_out_are_counted_exactly(
    weights: list[Fraction], limits: st.DataObject, lanes: int
) -> None:
    most = [limits.draw(st.integers(1, 100)) for _ in weights]
    dealer = RowDealer(weights, lanes=lanes)
    found = dealt(dealer, range(sum(most) + lanes + 1))
    expected = next(n for n, (source, row) in enumerate(found) if row >= most[source])
    assert dealer.rows_before(most) == expected


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Three sources of unlike sizes and lengths, tokenized alike; parts of each are held out."""
    sources, folders = [], []
    for name, documents, words, weight in (("short", 300, 6, 0.5), ("long", 60, 60, 0.3), ("few", 30, 20, 0.2)):
        folder = tmp_path_factory.mktemp(name)
        text = write_lines(folder / "text.txt", made_up_documents(documents, seed=len(name), words=words))
        folders.append(folder / "shards")
        sources.append(SourceConfig(name=name, weight=weight, shards=str(folders[-1])))
        build_shards(
            [text],
            tokenizer=small_tokenizer(),
            out=folders[-1],
            workers=1,
            block_tokens=256,
            validation_fraction=0.1,
            progress=False,
        )
    return open_corpus(sources, folders)


def recipe(corpus: Corpus, *, steps: int = 100, on_exhausted: str = "repeat", packing: str = "packed") -> Config:
    sources = [
        SourceConfig(name=source.name, weight=float(source.weight), shards=str(source.folder))
        for source in corpus.sources
    ]
    data = DataConfig.model_validate(
        {
            "sources": [source.model_dump() for source in sources],
            "max_seq_len": 32,
            "lanes": LANES,
            "on_exhausted": on_exhausted,
            "packing": packing,
        }
    )
    return Config(name="mix", data=data, train=TrainConfig(steps=steps, global_batch_size=24, micro_batch_size=4))


@pytest.mark.parametrize("packing", ["packed", "padded"])
def test_tokens_come_in_the_recipes_proportions(corpus: Corpus, packing: str) -> None:
    loader = loader_for(recipe(corpus, packing=packing), corpus, dp_rank=0, dp_world_size=1)
    tokens = sum(batch.tokens_by_source(3) for _ in range(400) for batch in next(loader))
    loader.close()
    # 9,600 rows: three sources, each at most a few rows and a part of an epoch away.
    assert tokens / tokens.sum() == pytest.approx([0.5, 0.3, 0.2], abs=0.004)


def test_no_document_comes_again_before_the_rows_that_are_told(corpus: Corpus) -> None:
    reader = reader_for(recipe(corpus), corpus, split="train", seed=0)
    seen: Counter[tuple[int, int]] = Counter()
    before = reader.rows_before_repeat
    lengths = [
        np.concatenate([np.asarray(part) for part in read._store.iter_lengths()])
        for read in reader._readers  # type: ignore[attr-defined]
    ]
    batch = reader.read(np.arange(before + 1))
    for row in range(before):
        seen.update((batch.row_sources[row], int(document)) for document in batch.row_documents[row])
    assert all(times <= -(-int(lengths[source][document]) // 30) for (source, document), times in seen.items())
    # The row behind them is the first of a source's second epoch.
    following = reader._dealer.deal(np.array([before]))  # type: ignore[attr-defined]
    (source,), (row,) = following.source, following.row
    assert row >= reader._readers[source].order.rows_per_epoch  # type: ignore[attr-defined]


def test_every_source_shows_each_document_once_in_each_of_its_epochs(corpus: Corpus) -> None:
    reader = reader_for(recipe(corpus), corpus, split="train", seed=0)
    readers = reader._readers  # type: ignore[attr-defined]
    rows = reader._dealer.deal(np.arange(3000))  # type: ignore[attr-defined]
    batch = reader.read(np.arange(3000))
    for source, own in enumerate(readers):
        epochs = rows.row[rows.source == source] // own.order.rows_per_epoch
        lengths = np.concatenate([np.asarray(part) for part in own._store.iter_lengths()])
        for epoch in range(int(epochs.max()) - 1):
            places = np.flatnonzero(rows.source == source)[epochs == epoch]
            documents = np.concatenate([batch.row_documents[place] for place in places])
            assert np.bincount(documents).tolist() == (-(-lengths.astype(int) // 30)).tolist()


def test_a_rank_reads_its_share_of_the_lanes_of_every_source(corpus: Corpus) -> None:
    readers = reader_for(recipe(corpus), corpus, split="train", seed=0, dp_world_size=4)._readers  # type: ignore[attr-defined]
    assert [reader._window_blocks for reader in readers] == [6, 6, 6]


def test_a_run_that_stops_when_a_source_runs_out_has_so_many_whole_batches(corpus: Corpus) -> None:
    whole = reader_for(recipe(corpus), corpus, split="train", seed=0).rows_before_repeat // 24
    assert 0 < whole < 100
    for on_exhausted, steps in (("stop", whole), ("repeat", 100)):
        loader = loader_for(recipe(corpus, on_exhausted=on_exhausted), corpus, dp_rank=0, dp_world_size=1)
        assert loader.num_steps == steps
        loader.close()


def test_a_short_run_is_not_lengthened_by_stopping(corpus: Corpus) -> None:
    loader = loader_for(recipe(corpus, steps=2, on_exhausted="stop"), corpus, dp_rank=0, dp_world_size=1)
    assert loader.num_steps == 2


def test_held_out_rows_are_mixed_of_all_sources(corpus: Corpus) -> None:
    reader = reader_for(recipe(corpus), corpus, split="validation", seed=0)
    assert set(reader.read(np.arange(reader.rows_before_repeat)).row_sources) == {0, 1, 2}


def test_sources_of_unlike_tokenizers_are_refused_by_name(corpus: Corpus, tmp_path: Path) -> None:
    text = write_lines(tmp_path / "text.txt", made_up_documents(300, seed=9))
    train_tokenizer([text], out=tmp_path / "tokenizer", vocab_size=200, progress=False)
    build_shards([text], tokenizer=tmp_path / "tokenizer", out=tmp_path / "other", workers=1, progress=False)
    first = corpus.sources[0].folder
    sources = [SourceConfig(name=name, weight=1.0, shards="") for name in ("books", "web")]
    with pytest.raises(UserError) as caught:
        open_corpus(sources, [first, tmp_path / "other"])
    assert str(caught.value) == (
        f"the sources 'books' ({first}) and 'web' ({tmp_path / 'other'}) were built with unlike tokenizers; build "
        f"'web' again with --tokenizer {first / 'tokenizer'}"
    )


def test_the_fingerprint_covers_every_source_in_its_place(corpus: Corpus) -> None:
    first, second, third = corpus.sources
    prints = {Corpus(part).fingerprint for part in [(first, second), (second, first), (first, third), (first,)]}
    assert len(prints) == 4
    assert Corpus((first,)).fingerprint == first.manifest.fingerprint
