from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.sentences import SENTENCE_BYTES, sample_sentences, sentences


def test_documents_are_taken_line_by_line_without_blank_ones() -> None:
    assert list(sentences(["one\n\n two", " \n", "水"])) == ["one", " two", "水"]


@given(st.lists(st.text("a水é", min_size=1, max_size=3000), min_size=1, max_size=4))
def test_long_lines_are_cut_and_nothing_of_them_is_lost(words: list[str]) -> None:
    pieces = list(sentences([" ".join(words)]))
    assert "".join(pieces).replace(" ", "") == "".join(words)
    assert all(len(piece.encode()) <= SENTENCE_BYTES for piece in pieces)


def test_a_long_line_is_cut_at_white_space_where_there_is_some() -> None:
    line = " ".join(["word"] * 2000)
    assert {word for piece in sentences([line]) for word in piece.split()} == {"word"}


def test_a_small_input_is_taken_whole_and_in_order() -> None:
    assert sample_sentences(["a", "b", "c"], size=3, seed=0) == ["a", "b", "c"]


def test_a_sample_depends_on_the_seed_alone() -> None:
    lines = [str(number) for number in range(1000)]
    first, again, other = (sample_sentences(lines, size=50, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert len(set(first)) == 50


def test_every_line_is_equally_likely_to_be_sampled() -> None:
    counts = [0] * 40
    for seed in range(2000):
        for line in sample_sentences(map(str, range(40)), size=10, seed=seed):
            counts[int(line)] += 1
    # 500 expected each, with a standard deviation of 19.
    assert all(400 < count < 600 for count in counts)
