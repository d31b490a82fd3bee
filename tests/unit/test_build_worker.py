from __future__ import annotations

import pickle

from small_corpus import made_up_documents, small_tokenizer

from data_pipeline.build_worker import EncodedChunk, EncodeJob, encode_chunk, encode_in_worker, is_validation
from data_pipeline.text import LineChunk, TextOptions
from data_pipeline.tokenizer import Tokenizer
from trainer.errors import UserError

DOCUMENTS = made_up_documents(200)
CHUNK = LineChunk("a.txt", False, "\n".join(DOCUMENTS).encode(), 1, 0, 0)


def _encode(number: int, *, train: tuple[int, int] = (0, 0), validation: tuple[int, int] = (0, 0)) -> EncodedChunk:
    job = EncodeJob(str(small_tokenizer()), TextOptions(), 0.3, {"train": train, "validation": validation})
    return encode_chunk(CHUNK, number=number, job=job)


def test_each_document_falls_into_one_split_by_its_text_alone() -> None:
    held_out = is_validation(DOCUMENTS, fraction=0.3)
    assert is_validation(DOCUMENTS[::-1], fraction=0.3).tolist() == held_out.tolist()[::-1]
    assert 30 < held_out.sum() < 90
    assert not is_validation(DOCUMENTS, fraction=0.0).any()
    # A larger fraction holds out the same documents and more.
    assert not (held_out & ~is_validation(DOCUMENTS, fraction=0.6)).any()


def test_the_choice_of_a_known_text_never_changes() -> None:
    # Shards built by an older version must go on, and stay comparable.
    chosen = is_validation(["We", "the", "People", "of", "the", "United", "States"], fraction=0.5)
    assert chosen.tolist() == [False, True, False, False, True, True, False]


def test_tokens_lengths_and_places_belong_together() -> None:
    encoded = _encode(0)
    tokenizer = Tokenizer.load(small_tokenizer())
    held_out = is_validation(DOCUMENTS, fraction=0.3)
    for split, wanted in (("train", ~held_out), ("validation", held_out)):
        part = encoded.splits[split]  # type: ignore[index]
        assert part.places.tolist() == [place for place, chosen in enumerate(wanted) if chosen]
        ids = tokenizer.encode_batch([DOCUMENTS[place] for place in part.places])
        assert part.lengths.tolist() == [len(document) for document in ids]
        assert part.tokens.tolist() == [token for document in ids for token in document]
    assert encoded.documents == 200


def test_documents_without_a_token_are_counted_and_left_out() -> None:
    chunk = LineChunk("a.txt", False, "ba\n\u200b\nde".encode(), 1, 0, 0)
    job = EncodeJob(str(small_tokenizer()), TextOptions(), 0.0, {"train": (0, 0), "validation": (0, 0)})
    encoded = encode_chunk(chunk, number=0, job=job)
    assert encoded.documents == 3
    assert encoded.splits["train"].places.tolist() == [0, 2]


def test_what_lies_in_finished_shards_is_left_out() -> None:
    whole = _encode(4)
    part = _encode(4, train=(4, 100), validation=(3, 7))
    wanted = [place for place in whole.splits["train"].places.tolist() if place >= 100]
    assert part.splits["train"].places.tolist() == wanted
    assert part.splits["validation"].places.tolist() == whole.splits["validation"].places.tolist()
    behind = _encode(4, train=(5, 0), validation=(9, 9))
    assert behind == EncodedChunk(200, {})


def test_whatever_fails_in_a_worker_is_one_line_that_survives_pickling() -> None:
    job = EncodeJob("missing", TextOptions(), 0.0, {"train": (0, 0), "validation": (0, 0)})
    broken = LineChunk("a.txt", False, None, 1, 0, 0)  # type: ignore[arg-type]
    for chunk, message in ((CHUNK, "missing does not exist"), (broken, "failed on chunk 7 of the input, in a.txt")):
        try:
            encode_in_worker(chunk, 7, job)
        except UserError as error:
            assert message in str(pickle.loads(pickle.dumps(error)))  # noqa: PT017 - what arrives is looked at
        else:
            raise AssertionError("no error")
