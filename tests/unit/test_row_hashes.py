"""The order of rows, as `data_pipeline order` shows it and as ranks of any number read it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_corpus import made_up_documents, small_tokenizer, write_lines

from data_pipeline.batch import IGNORED_LABEL, Batch
from data_pipeline.build import build_shards
from data_pipeline.corpus import Corpus, open_corpus, open_folder
from data_pipeline.from_recipe import loader_for, reader_for
from data_pipeline.row_hashes import HashedRow, row_hash, row_hashes
from data_pipeline.shards import BlockStore
from trainer.config import Config
from trainer.data_config import SourceConfig
from trainer.errors import UserError
from trainer.phases import with_micro_batch_size

WORLDS = [1, 2, 3, 4, 6, 8]
BODY = 30  # tokens of a document in a row of 32


def recipe(*, batch: int = 24, steps: int = 10_000, **changed: Any) -> Config:
    data = {"shards": "x", "max_seq_len": 32, "lanes": 24, **changed.pop("data", {})}
    train = {"steps": steps, "global_batch_size": batch, "micro_batch_size": 1, **changed.pop("train", {})}
    return Config.model_validate({"name": "order", "data": data, "train": train, **changed})


def built(folder: Path, documents: list[str], *, shard_tokens: int = 2048) -> Corpus:
    folder.mkdir()
    build_shards(
        [write_lines(folder / "text.txt", documents)],
        tokenizer=small_tokenizer(),
        out=folder / "shards",
        workers=1,
        block_tokens=256,
        shard_tokens=shard_tokens,
        validation_fraction=0.0,
        progress=False,
    )
    return open_folder(folder / "shards")


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> list[Corpus]:
    """One text in shards of three sizes; some documents are longer than a row. And a mixture of two of them."""
    folder = tmp_path_factory.mktemp("corpora")
    documents = [*made_up_documents(80), *made_up_documents(20, seed=1, words=120)]
    made = [built(folder / str(size), documents, shard_tokens=size) for size in (100_000, 1500, 600)]
    assert len({len(corpus.manifest.splits["train"].shards) for corpus in made}) == 3
    sources = [SourceConfig(name=name, weight=weight, shards="") for name, weight in (("a", 0.7), ("b", 0.3))]
    return [*made, open_corpus(sources, [corpus.sources[0].folder for corpus in made[:2]])]


def hashes(config: Config, corpus: Corpus, first: int, end: int, *, world: int = 1, micro: int = 1) -> list[HashedRow]:
    config = with_micro_batch_size(config, micro)
    return list(row_hashes(config, corpus, first_step=first, end_step=end, world_size=world))


TWO_PHASES = {
    "train": {"steps": 12},
    "phases": [
        {"steps": 7, "max_seq_len": 16, "batch_warmup": [{"until_step": 3, "global_batch_size": 24}]},
        {"steps": 5, "global_batch_size": 24, "mask_rate": 0.3},
    ],
}


@pytest.mark.parametrize("which", [0, 3])
def test_rows_are_the_same_on_every_number_of_ranks(corpora: list[Corpus], which: int) -> None:
    whole = hashes(recipe(), corpora[which], 0, 3)
    assert [(row.step, row.row) for row in whole] == [(n // 24, n) for n in range(72)]
    assert len({row.hash for row in whole}) == 72
    for world in WORLDS[1:]:
        assert hashes(recipe(), corpora[which], 0, 3, world=world) == whole
    assert hashes(recipe(), corpora[which], 0, 3, world=2, micro=12) == whole
    assert hashes(recipe(), corpora[which], 2, 3, world=8, micro=3) == whole[48:]


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_after_any_stops_and_resumes_on_other_worlds_the_rows_are_those_of_an_unbroken_run(
    corpora: list[Corpus], data: st.DataObject
) -> None:
    corpus = corpora[data.draw(st.integers(0, 3), label="corpus")]
    phased = data.draw(st.booleans(), label="phased")
    batch = data.draw(st.sampled_from([24, 48]), label="batch")
    config = recipe(batch=48, **TWO_PHASES) if phased else recipe(batch=batch)
    # Epochs of about 80 rows: many are passed.
    first = 0 if phased else data.draw(st.integers(0, 40), label="first step")
    stops = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4), label="steps between stops")
    stops = stops if not phased else [min(stop, 3) for stop in stops]
    expected = hashes(config, corpus, first, first + sum(stops))
    found: list[HashedRow] = []
    state: dict[str, Any] | None = None
    step = first
    for steps in stops:
        world = data.draw(st.sampled_from(WORLDS), label="world")
        micro = data.draw(st.sampled_from([1, 3] if 24 % (3 * world) == 0 else [1]), label="micro")
        resumed = with_micro_batch_size(config, micro)
        loaders = [loader_for(resumed, corpus, dp_rank=rank, dp_world_size=world) for rank in range(world)]
        for loader in loaders:
            loader.seek(step) if state is None else loader.load_state_dict(state, step=step)
        for _ in range(steps):
            rows = [(int(n), row_hash(b, i)) for one in loaders for b in next(one) for i, n in enumerate(b.row_ids)]
            found += [HashedRow(step, *row) for row in sorted(rows)]
            step += 1
        states = [loader.state_dict() for loader in loaders]
        assert all(other == states[0] for other in states)
        state = states[0]
        for loader in loaders:
            loader.close()
    assert found == expected


def test_phases_count_rows_of_their_own_and_batches_grow(corpora: list[Corpus]) -> None:
    rows = hashes(recipe(batch=48, **TWO_PHASES), corpora[0], 0, 12, world=2, micro=4)
    sizes = Counter(row.step for row in rows)
    assert [sizes[step] for step in range(12)] == [24] * 3 + [48] * 4 + [24] * 5
    first_rows = {step: min(row.row for row in rows if row.step == step) for step in range(12)}
    assert [first_rows[step] for step in (0, 3, 4, 6, 7, 8)] == [0, 72, 120, 216, 0, 24]


def documents_of(corpus: Corpus) -> list[list[int]]:
    source = corpus.sources[0]
    store = BlockStore(source.folder, manifest=source.manifest, split="train")
    found = []
    for number in range(store.num_blocks):
        block = store.read_block(number)
        assert store.first_document(number) == len(found)
        found += [part.tolist() for part in np.split(block.tokens, np.cumsum(block.lengths)[:-1])]
    return found


def pieces_of(batch: Batch, row: int) -> list[tuple[int, tuple[int, ...]]]:
    """Document and tokens of each piece of a row, as they were before they were masked."""
    ids = np.where(batch.labels[row] == IGNORED_LABEL, batch.input_ids[row], batch.labels[row])
    return [
        (int(document), tuple(ids[batch.document_ids[row] == place][1:-1].tolist()))
        for place, document in enumerate(batch.row_documents[row], start=1)
    ]


@pytest.mark.parametrize("packing", ["packed", "padded"])
@pytest.mark.parametrize("world", [1, 3])
def test_every_document_comes_exactly_once_an_epoch_with_the_tokens_of_its_number(
    corpora: list[Corpus], packing: str, world: int
) -> None:
    corpus, config = corpora[1], recipe(data={"packing": packing})
    documents = documents_of(corpus)
    expected = Counter(
        (number, tuple(tokens[start : start + BODY]))
        for number, tokens in enumerate(documents)
        for start in range(0, len(tokens), BODY)
    )
    assert max(map(len, documents)) > 2 * BODY
    rows_per_epoch = reader_for(config, corpus, split="train", seed=0).rows_before_repeat
    seen: dict[int, Counter[Any]] = {epoch: Counter() for epoch in range(4)}
    loaders = [loader_for(config, corpus, dp_rank=rank, dp_world_size=world) for rank in range(world)]
    for _ in range(3 * rows_per_epoch // 24 + 1):
        for batch in [batch for loader in loaders for batch in next(loader)]:
            for row, number in enumerate(batch.row_ids):
                seen[int(number) // rows_per_epoch].update(pieces_of(batch, row))
    for loader in loaders:
        loader.close()
    assert [seen[epoch] == expected for epoch in range(3)] == [True, True, True]


def test_a_document_longer_than_a_row_comes_whole_in_pieces(tmp_path: Path) -> None:
    words = made_up_documents(1, words=2)[0].split()[1:]
    corpus = built(tmp_path / "long", [" ".join(words * 300), *made_up_documents(20, words=3)])
    (number,) = [number for number, tokens in enumerate(documents_of(corpus)) if len(tokens) > 200]
    whole = documents_of(corpus)[number]
    reader = reader_for(recipe(), corpus, split="train", seed=0)
    batch = reader.read(np.arange(reader.rows_before_repeat))
    pieces = [
        piece for row in range(len(batch.row_ids)) for document, piece in pieces_of(batch, row) if document == number
    ]
    assert Counter(pieces) == Counter(tuple(whole[start : start + BODY]) for start in range(0, len(whole), BODY))
    assert hashes(recipe(), corpus, 0, 4, world=4) == hashes(recipe(), corpus, 0, 4)


def test_an_epochs_tail_and_the_next_epochs_head_share_a_batch_without_an_empty_row(corpora: list[Corpus]) -> None:
    rows_per_epoch = reader_for(recipe(), corpora[0], split="train", seed=0).rows_before_repeat
    assert rows_per_epoch % 24, "the tail must not end with a batch"
    step = rows_per_epoch // 24
    loader = loader_for(recipe(train={"micro_batch_size": 24}), corpora[0], dp_rank=0, dp_world_size=1)
    loader.seek(step)
    (batch,) = next(loader)
    loader.close()
    assert {int(number) // rows_per_epoch for number in batch.row_ids} == {0, 1}
    assert (batch.document_ids > 0).any(axis=1).all()
    assert hashes(recipe(), corpora[0], step, step + 1, world=8) == hashes(recipe(), corpora[0], step, step + 1)


def test_a_corpus_smaller_than_a_batch_comes_several_times_in_it(tmp_path: Path) -> None:
    corpus = built(tmp_path / "tiny", made_up_documents(5, words=3))
    config = recipe(data={"packing": "padded"}, train={"micro_batch_size": 24})
    loader = loader_for(config, corpus, dp_rank=0, dp_world_size=1)
    (batch,) = next(loader)
    loader.close()
    times = Counter(int(document) for documents in batch.row_documents for document in documents)
    assert times.keys() == {0, 1, 2, 3, 4}
    assert set(times.values()) == {4, 5}
    assert hashes(config, corpus, 0, 2, micro=3, world=8) == hashes(config, corpus, 0, 2)


def test_a_hash_tells_rows_apart_that_differ_in_anything(corpora: list[Corpus]) -> None:
    loader = loader_for(recipe(), corpora[0], dp_rank=0, dp_world_size=1)
    batch = next(loader)[0]
    loader.close()
    changed: list[dict[str, Any]] = [
        {"row_sources": (1,)},
        {"row_documents": (batch.row_documents[0] + 1,)},
        *({name: getattr(batch, name) + 1} for name in ("input_ids", "position_ids", "document_ids", "labels")),
    ]
    found = {row_hash(Batch(**{**vars(batch), **change}), 0) for change in [{}, *changed]}
    assert len(found) == 7


def test_a_world_that_does_not_fit_is_refused_with_the_nearest_that_do(corpora: list[Corpus]) -> None:
    with pytest.raises(UserError, match=r"dp_world_size=5 does not divide data\.lanes=24; use dp_world_size=4 or 6"):
        hashes(recipe(), corpora[0], 0, 1, world=5)
    with pytest.raises(
        UserError, match=r"global_batch_size=36 is not divisible by micro_batch_size=1 × dp_world_size=8"
    ):
        hashes(recipe(batch=36), corpora[0], 0, 1, world=8)


def test_steps_behind_the_end_of_the_run_are_refused(corpora: list[Corpus]) -> None:
    with pytest.raises(UserError, match=r"--steps ends at 4, and the run at step 3; ask for earlier ones"):
        hashes(recipe(steps=3), corpora[0], 0, 4)


def test_a_run_that_has_ended_goes_on_in_a_phase_added_to_its_recipe(corpora: list[Corpus]) -> None:
    added = recipe(steps=5, phases=[{"steps": 3}, {"steps": 2, "max_seq_len": 16}])
    ended = loader_for(recipe(steps=3), corpora[0], dp_rank=0, dp_world_size=1)
    ended.seek(3)
    going_on = loader_for(added, corpora[0], dp_rank=0, dp_world_size=1)
    going_on.load_state_dict(ended.state_dict(), step=3)
    assert going_on.state_dict() == {**ended.state_dict(), **going_on.state_dict(), "phase": 1, "next_row": 0}
    found = [row_hash(batch, 0) for batch in next(going_on)]
    going_on.close()
    assert found == [row.hash for row in hashes(added, corpora[0], 3, 4)]
    other = loader_for(added.model_copy(update={"seed": 1}), corpora[0], dp_rank=0, dp_world_size=1)
    with pytest.raises(UserError, match="another seed"):
        other.load_state_dict(ended.state_dict(), step=3)
