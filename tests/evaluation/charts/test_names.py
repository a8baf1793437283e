"""Names as charts show them: one line, without control characters, without the group in front."""

from __future__ import annotations

import pytest

from monoloss.evaluation.charts.names import class_name, plain_text, variant_of
from support.charts import HOSTILE


@pytest.mark.parametrize(
    ("name", "group", "variant"),
    [
        ("topk-memory", "TopK", "memory"),
        ("batch_topk-mono", "BatchTopK", "mono"),
        ("Batch TopK: mono", "batch_topk", "mono"),
        ("topk", "TopK", "topk"),
        ("topk-", "TopK", "topk-"),
        ("topkmono", "TopK", "topkmono"),
        ("mono-topk", "TopK", "mono-topk"),
        ("mono", "", "mono"),
    ],
)
def test_a_variant_is_the_name_without_its_group(name: str, group: str, variant: str) -> None:
    assert variant_of(name, group) == variant


@pytest.mark.parametrize("name", HOSTILE)
def test_any_name_is_one_printable_line(name: str) -> None:
    text = plain_text(name, 20)
    assert 0 < len(text) <= 20
    assert all(letter.isprintable() or letter in "\u200c\u200d" for letter in text)
    assert text == text.strip()
    text.encode()


def test_long_names_keep_both_ends() -> None:
    assert plain_text("abcdefgh", 8) == "abcdefgh"
    assert plain_text("abcdefgh", 5) == "ab…gh"
    assert plain_text("abcdefgh", 4) == "ab…h"


def test_a_class_without_a_name_shows_its_number() -> None:
    assert class_name(1, ["cat", " a\tdog "]) == "a dog"
    assert class_name(2, ["cat", "dog"]) == class_name(2, None) == "class 2"
