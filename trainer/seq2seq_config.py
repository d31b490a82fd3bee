"""The recipe's task section for tasks from text to text."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.strict_model import PositiveInt, StrictModel


class Seq2SeqConfig(StrictModel):
    """What every task from text to text has: a decoder of the encoder's shape, its training and its search.

    source, target: the columns; in a .jsonl or .parquet file a target may be a list of texts that are all right, of
    which the first is trained.
    target_length: tokens of a target, [CLS] and [SEP] included, in training and in what is written; data.max_length
    where it is left out.
    label_smoothing: share of an even distribution in the targets (Szegedy et al. 2016, section 7), in training alone.
    beams: width of the search, 1 being greedy. length_penalty: alpha of Wu et al. 2016, equation 14; more of it favours
    longer texts.
    """

    name: str
    source: str = "source"
    target: str = "target"
    target_length: Annotated[int, Field(ge=3)] | None = None
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    beams: PositiveInt = 4
    length_penalty: Annotated[float, Field(ge=0.0)] = 0.6


class TranslationConfig(Seq2SeqConfig):
    """A text in another language, scored by BLEU (Papineni et al. 2002) and chrF (Popović 2015).

    script: of the target language. `chinese` compares by characters and writes punctuation behind a Chinese character
    in full width, which the vocabulary's normalisation has made narrow.
    """

    name: Literal["translation"] = "translation"
    script: Literal["spaced", "chinese"] = "spaced"


class SummarizationConfig(Seq2SeqConfig):
    """A short text that says what a long one is about, scored by ROUGE (Lin 2004): of words, or of characters."""

    name: Literal["summarization"] = "summarization"
    script: Literal["spaced", "chinese"] = "spaced"


class DecompositionConfig(Seq2SeqConfig):
    """A Chinese character or word to its components, blanks between them, right where all are right and in order.

    spelling: what the encoder reads. `code_point` gives the hexadecimal digits of each character's code point: of a
    character that training has not seen they tell the radical and about the strokes, by which Unicode is sorted.
    """

    name: Literal["decomposition"] = "decomposition"
    spelling: Literal["character", "code_point"] = "character"
