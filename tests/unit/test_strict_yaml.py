import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.errors import UserError
from trainer.strict_yaml import dump_yaml, parse_yaml

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    LEAVES | TEXTS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=8
)


def parsed(text):
    return parse_yaml(text, source="r.yaml").value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("3.", 3.0),
        ("0", 0),
        ("-7", -7),
        ("1_000_000", 1000000),
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("", None),
    ],
)
def test_scalars_that_are_not_text(text, value):
    found = parsed(f"a: {text}")["a"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "text", ["on", "off", "yes", "no", "True", "FALSE", "0x10", "010", "0o17", "1:30", "2024-01-01", ".inf", "1e", "."]
)
def test_everything_else_is_text(text):
    assert parsed(f"a: {text}") == {"a": text}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2\n", "r.yaml:4: the key c stands twice, first on line 3; remove one"),
        ("1: x\nb: 2\n", "r.yaml:1: the key 1 is not text; quote it"),
        ("? [a]\n: 3\n", "r.yaml:1: this key is not text; quote it"),
        ("a: !!python/object:os.system x\nb: 1", "r.yaml:1: explicit tags (!) are not allowed"),
        ("a: &x 1\nb: *x\n", "r.yaml:1: anchors and aliases (& and *) are not allowed"),
        ("a: &x [*x]\n", "r.yaml:1: anchors and aliases"),
        ("a: [1\nb: 2\n", "r.yaml:2: while parsing a flow sequence, expected ',' or ']', but got ':'"),
        ("a: 1\n---\nb: 2\n", "r.yaml:2: expected a single document in the stream, but found another document"),
        ("a: \x07", "r.yaml: not readable as YAML: unacceptable character #x0007"),
        ("[" * 5000, "r.yaml: nested too deeply to be read"),
        ("a: " + "9" * 5000, "r.yaml: not readable as YAML: Exceeds the limit"),
    ],
)
def test_what_is_not_well_formed_is_refused_in_one_line(text, message):
    with pytest.raises(UserError) as caught:
        parse_yaml(text, source="r.yaml")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_each_key_path_knows_its_line():
    document = parse_yaml("a: 1\nb:\n  c:\n  - x\n  - y\n", source="r.yaml")
    assert document.lines == {("a",): 1, ("b",): 2, ("b", "c"): 3, ("b", "c", 0): 4, ("b", "c", 1): 5}


@pytest.mark.parametrize(
    "text", ["1e-4", "1E5", "3.", "1_000", "-7", "true", "null", "~", "", "on", "010", "a\x85b", "字"]
)
def test_a_text_that_looks_like_something_else_stays_text(text):
    assert parsed(dump_yaml({"a": text})) == {"a": text}


@given(st.dictionaries(TEXTS, VALUES, max_size=4))
def test_what_is_dumped_is_read_back_equal(value):
    assert parsed(dump_yaml(value)) == value


@given(st.text())
def test_any_text_is_read_or_refused(text):
    try:
        parsed(text)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017 (either outcome is right)
