"""Versioned JSON files: what is written comes back, and what cannot be read is named."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from monoloss.errors import InputError
from monoloss.files.json import read_json, write_json


def test_json_round_trip(tmp_path: Path) -> None:
    content = {"a": [1, 0.1, True, None, math.nan], "b": {"c": (1e-300, 'quote " and\nline é \udc80')}}
    write_json(tmp_path / "x.json", content, format_version=3)
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text)["format_version"] == 3
    assert "NaN" not in text
    expected = {"a": [1, 0.1, True, None, None], "b": {"c": [1e-300, 'quote " and\nline é \udc80']}}
    assert read_json(tmp_path / "x.json", format_version=3) == expected
    undefined = read_json(tmp_path / "x.json", format_version=3, null=math.nan)["a"]
    assert undefined[:3] == [1, 0.1, True]
    assert all(math.isnan(value) for value in undefined[3:])


@pytest.mark.door
@pytest.mark.parametrize("infinite", [math.inf, -math.inf])
def test_infinite_numbers_are_refused(tmp_path: Path, infinite: float) -> None:
    with pytest.raises(InputError, match=r"x\.json: got -?inf at 'scores\.a\[1\]'; expected finite numbers, or NaN"):
        write_json(tmp_path / "x.json", {"scores": {"a": [0.0, infinite]}}, format_version=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.door
def test_the_version_is_no_part_of_the_content(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="content: got the key 'format_version'; expected the version as the argument format_version"
    ):
        write_json(tmp_path / "x.json", {"format_version": 2}, format_version=1)


@pytest.mark.door
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format_version": 1, "a": [1, 2', "a file that is not JSON"),
        ("", "a file that is not JSON"),
        ('{"format_version": 1, "a": NaN}', "a file that is not JSON"),
        ("\xff\xfe", "a file that is not JSON"),
        ("[" * 100_000, "a file that is not JSON"),
        ("[1]", "a JSON list"),
        ('{"a": 1}', "no format_version; expected format_version 1"),
        ('{"format_version": 2}', "format_version 2; expected format_version 1, which this version of monoloss reads"),
    ],
)
def test_unreadable_json_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError) as error:
        read_json(tmp_path / "x.json", format_version=1)
    assert str(error.value).startswith(f"{tmp_path / 'x.json'}: got {message}")


@pytest.mark.door
def test_missing_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x\.json: got No such file or directory; expected a readable JSON file"):
        read_json(tmp_path / "x.json", format_version=1)
