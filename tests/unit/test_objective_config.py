import pytest
from pydantic import ValidationError

from trainer.augmentation_config import AugmentationConfig
from trainer.objective_config import ObjectiveConfig


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mask_rate": 0.0}, "greater than 0"),
        ({"mask_rate": 1.0}, r"1\.0 must be a number greater than 0 and less than 1, or start, end and rows"),
        ({"mask_rate": float("nan")}, "nan must be a number"),
        ({"mask_rate": "0.3"}, "'0.3' must be a number"),
        ({"mask_rate": True}, "True must be a number"),
        ({"mask_rate": {"start": 1.0, "rows": 5}}, "less than 1"),
        ({"mask_rate": {"start": 0.3}}, "start=0.3 to end=0.15: rows=None must say over how many rows"),
        ({"mask_rate": {"rows": 100}}, "rows=100 says over how many, but nothing changes"),
        ({"mask_rate": {"start": 0.3, "rows": 0}}, "greater than 0"),
        ({"mask_rate": {"start": 0.3, "steps": 100}}, "Extra inputs are not permitted"),
        ({"masking": "words"}, "'token', 'whole_word' or 'span'"),
        ({"pairs": "nap"}, "'none', 'nsp' or 'sop'"),
        ({"negatives": 3}, "negatives=3 belongs to pairs: nsp, but pairs is none"),
        ({"negatives": 3, "pairs": "sop"}, "negatives=3 belongs to pairs: nsp, but pairs is sop"),
        ({"negatives": 0, "pairs": "nsp"}, "greater than 0"),
        ({"pair_weight": 2.0}, "pair_weight=2.0 weighs nothing: pairs is none"),
        ({"pair_weight": 0.0, "pairs": "sop"}, "greater than 0"),
    ],
)
def test_an_objective_that_cannot_be_is_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        ObjectiveConfig.model_validate(values)


def test_one_number_is_a_constant_mask_rate_and_comes_back_from_a_written_recipe():
    objective = ObjectiveConfig.model_validate({"mask_rate": 0.3})
    assert (objective.mask_rate.start, objective.mask_rate.end, objective.mask_rate.rows) == (0.3, 0.3, None)
    assert ObjectiveConfig.model_validate(objective.model_dump()) == objective


@pytest.mark.parametrize(
    ("values", "candidates"),
    [({}, None), ({"pairs": "nsp"}, 1), ({"pairs": "sop"}, 1), ({"pairs": "nsp", "negatives": 4}, 5)],
)
def test_a_prediction_is_made_from_one_sequence_or_from_one_and_the_negatives(values, candidates):
    assert ObjectiveConfig.model_validate(values).candidates == candidates


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "insert, swap and delete are all 0"),
        ({"delete": 1.0}, "less than 1"),
        ({"insert": -0.1}, "greater than or equal to 0"),
        ({"swap": 0.1, "level": "word"}, "'token' or 'sentence'"),
    ],
)
def test_an_augmentation_that_cannot_be_is_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        AugmentationConfig.model_validate(values)
