"""Configuration files of runs: options that replace values, and the first difference of two."""

from __future__ import annotations

import pytest

from monoloss.errors import InputError
from monoloss.runs.config_files import first_difference, read_settings


@pytest.fixture
def file(tmp_path):
    (tmp_path / "run.yaml").write_text("{a: &a {x: 1, y: 2}, b: *a, c: null}", encoding="utf-8")
    return tmp_path / "run.yaml"


def test_options_replace_values_in_one_place_and_make_missing_mappings(file):
    options = [("a.x", "3e-4"), ("c.d.e", "[1, two]"), ("f", "true")]
    expected = {"a": {"x": 3e-4, "y": 2}, "b": {"x": 1, "y": 2}, "c": {"d": {"e": [1, "two"]}}, "f": True}
    assert read_settings(file, options) == expected
    assert read_settings(file) == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 2}, "c": None}


def test_a_key_is_split_as_the_caller_says(file):
    def split(content, key):
        assert content["b"] == {"x": 1, "y": 2}
        return ["b", key]

    assert read_settings(file, [("x.y", "5")], split)["b"] == {"x": 1, "y": 2, "x.y": 5}


@pytest.mark.door
@pytest.mark.parametrize(
    ("option", "text"),
    [
        (("a.x.z", "1"), "a.x: got a int; expected keys and values, because of --a.x.z"),
        (("a", "{1"), "--a: got text that is not YAML (expected ',' or '}'"),
    ],
)
def test_error_texts_of_options(file, option, text):
    with pytest.raises(InputError) as caught:
        read_settings(file, [option])
    assert str(caught.value).startswith(text)


def test_first_difference():
    assert first_difference({"a": {"b": 1}, "c": 2}, {"a": {"b": 1}, "c": 2}) is None
    assert first_difference({"a": {"b": 1, "d": 4}}, {"a": {"b": 1, "d": 5}}) == ("a.d", 4, 5)
    assert first_difference({"a": 1}, {"a": 1, "b": None}) == ("b", None, None)
    assert first_difference({"a": 1, "b": 2}, {"a": 1, "b": 3}, ignored=("b",)) is None
