"""YAML as people write it, and refusals of what is none or stands twice."""

from __future__ import annotations

import pytest

from monoloss.errors import InputError
from monoloss.files.yaml import from_yaml, to_yaml


def test_numbers_as_people_write_them():
    numbers = {"a": 3e-4, "b": 1e5, "c": -2.5e-3, "d": 1, "e": 1.5, "f": 1e-05, "g": True, "h": None}
    text = "{a: 3e-4, b: 1E5, c: -2.5e-3, d: 1, e: 1.5, f: 1.0e-05, g: true, h: null}"
    assert from_yaml(text, "x") == numbers
    assert {key: type(value) for key, value in from_yaml(text, "x").items()} == {k: type(v) for k, v in numbers.items()}
    assert from_yaml(to_yaml(numbers), "x") == numbers
    assert from_yaml("[e4, 1e, '3e-4', 0x10e4]", "x") == ["e4", "1e", "3e-4", 0x10E4]


def test_keys_keep_their_order_and_text_its_letters():
    content = {"z": [1, {"b": "é", "1e-3": "3e-4"}], "a": None, "m": "true"}  # text that looks like a number too
    assert from_yaml(to_yaml(content), "x") == content
    assert [line[0] for line in to_yaml(content).splitlines() if line[0] in "zam"] == ["z", "a", "m"]
    assert "é" in to_yaml(content)


def test_a_key_may_override_one_from_a_merge():
    assert from_yaml("{a: &a {k: 1, n: 2}, b: {<<: *a, k: 3}}", "x") == {"a": {"k": 1, "n": 2}, "b": {"k": 3, "n": 2}}


@pytest.mark.door
@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("a: 1\nb: 2\na: 3", "the key 'a' twice in line 1"),
        ("a:\n  - {k: 1, k: 2}", "the key 'k' twice in line 2"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor for the tag"),
        ("a: 2020-99-99", "unreadable text"),
    ],
)
def test_error_texts(text, got):
    with pytest.raises(InputError) as caught:
        from_yaml(text, "some.yaml")
    assert str(caught.value).startswith(f"some.yaml: got text that is not YAML ({got}")
    assert caught.value.expected == "valid YAML, each key once"
