"""The recipe's objective section: what is hidden from the model, and what it has to find out."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainer.strict_model import PositiveInt, Rate, StrictModel

OpenRate = Annotated[float, Field(gt=0.0, lt=1.0)]

# Spans keep a gap of one word at least, which leaves no room for more than 0.79 of the words.
MAX_SPAN_RATE = 0.75
# [CLS] A [SEP] B [SEP], A and B of one token each.
SHORTEST_PAIR = 5


class MaskRateConfig(StrictModel):
    """The share of the tokens that is predicted: linear from `start` at row 0 to `end` at row `rows`, then constant.

    Rows are counted since the phase began: step k of batches of B rows begins with row k * B. A recipe may write one
    number for a constant rate.
    """

    start: OpenRate = 0.15
    end: OpenRate = 0.15
    rows: PositiveInt | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_number_is_constant(cls, rate: object) -> object:
        if isinstance(rate, (dict, MaskRateConfig)):
            return rate
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0.0 < rate < 1.0:
            raise ValueError(f"{rate!r} must be a number greater than 0 and less than 1, or start, end and rows")
        return {"start": rate, "end": rate}

    @model_validator(mode="after")
    def _rows_belong_to_a_change(self) -> MaskRateConfig:
        if (self.rows is None) != (self.start == self.end):
            rule = "must say over how many rows" if self.rows is None else "says over how many, but nothing changes"
            raise ValueError(f"goes from start={self.start} to end={self.end}: rows={self.rows} {rule}")
        return self

    @property
    def highest(self) -> float:
        """The largest rate of any row."""
        return max(self.start, self.end)


class ObjectiveConfig(StrictModel):
    """Masked-language modelling (Devlin et al. 2019, section 3.1), and sentence pairs beside it.

    masking: `token` chooses token by token, `whole_word` whole words, `span` runs of words (Joshi et al. 2020).
    pairs: `nsp` is next-sentence prediction: a half of the second segments come from another document (Devlin et al.
    2019); with `negatives: k` the true second segment is found among 1 + k instead, by a softmax over the scores of
    all. `sop` is sentence-order prediction: a half of the pairs is swapped (Lan et al. 2020).
    label_smoothing: share of each masked token's target spread evenly over the vocabulary (Szegedy et al. 2016).
    z_loss: weight of log² of that softmax's denominator (Chowdhery et al. 2022). Both are part of `train/loss` and of
    no validation loss.
    """

    masking: Literal["token", "whole_word", "span"] = "token"
    mask_rate: MaskRateConfig = MaskRateConfig()
    mask_token_rate: Rate = 0.8
    random_token_rate: Rate = 0.1
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    z_loss: Annotated[float, Field(ge=0.0)] = 0.0
    pairs: Literal["none", "nsp", "sop"] = "none"
    negatives: PositiveInt | None = None
    pair_weight: Annotated[float, Field(gt=0.0)] = 1.0

    @model_validator(mode="after")
    def _rates_fit(self) -> ObjectiveConfig:
        if self.mask_token_rate + self.random_token_rate > 1.0 + 1e-9:
            raise ValueError(
                f"mask_token_rate={self.mask_token_rate} + random_token_rate={self.random_token_rate} exceeds 1; "
                "the rest of the chosen tokens stays as it is"
            )
        return self

    @model_validator(mode="after")
    def _pairs_agree(self) -> ObjectiveConfig:
        if self.negatives is not None and self.pairs != "nsp":
            raise ValueError(
                f"objective.negatives={self.negatives} belongs to pairs: nsp, but pairs is {self.pairs}; remove it"
            )
        if self.pair_weight != 1.0 and self.pairs == "none":
            raise ValueError(f"objective.pair_weight={self.pair_weight} weighs nothing: pairs is none; remove it")
        return self

    @property
    def candidates(self) -> int | None:
        """Sequences that one pair prediction is made from; None without pairs."""
        return None if self.pairs == "none" else 1 + (self.negatives or 0)

    def check_row_length(self, max_seq_len: int, *, where: str) -> None:
        """Raise a ValueError where no pair of two single tokens fits a row; `where` names the section of the length."""
        if self.candidates is not None and max_seq_len < self.candidates * SHORTEST_PAIR:
            settings = f"pairs={self.pairs}" if self.negatives is None else f"negatives={self.negatives}"
            raise ValueError(
                f"{where}.max_seq_len={max_seq_len} is too short for objective.{settings}: a row holds "
                f"{self.candidates} sequence(s) of at least {SHORTEST_PAIR} tokens, "
                f"{self.candidates * SHORTEST_PAIR} together"
            )

    def check_mask_rate(self, rate: MaskRateConfig, *, where: str, rows: int) -> None:
        """Raise a ValueError for a rate that goes on behind the last of `rows` rows or is too high for the masking."""
        if self.masking == "span" and rate.highest > MAX_SPAN_RATE:
            raise ValueError(
                f"{where}.mask_rate={rate.highest} is too high for objective.masking=span, which keeps words between "
                f"spans; use at most {MAX_SPAN_RATE}"
            )
        if rate.rows is not None and rate.rows > rows:
            raise ValueError(
                f"{where}.mask_rate.rows={rate.rows} is more than its steps have: steps × global_batch_size = {rows} "
                f"rows; use at most {rows}"
            )
