"""Values that become scripts: what a page reads is what was written, whatever it holds."""

from __future__ import annotations

import json
import math

import pytest

from monoloss.report.script_files import json_text, script_text, short, short_all, write_script
from support.stores import ODD_IDS

HOSTILE = [
    *ODD_IDS,
    "</script><script>alert(1)</script>",
    "<!-- ",
    "-->",
    "\u2028\u2029",
    "'\"`${x}\\",
    "שלום \u202e",
    "👩‍👩‍👧",
    "]]>",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_any_text_comes_back_and_cannot_end_a_script(text):
    written = json_text({text: [text]})
    assert json.loads(written) == {text: [text]}
    assert written.isascii()
    assert "<" not in written
    assert "\n" not in written


@pytest.mark.parametrize("value", [math.nan, math.inf, [1.0, -math.inf]])
def test_what_json_cannot_hold_is_an_error(value):
    with pytest.raises(ValueError, match="JSON compliant"):
        json_text(value)


def test_scripts_add_to_each_other_in_any_order(tmp_path):
    write_script(tmp_path / "a" / "b.js", "items", [1], key='x"/0')
    text = (tmp_path / "a" / "b.js").read_text(encoding="ascii")
    start = "window.MONOLOSS=window.MONOLOSS||{};"
    assert text == start + 'MONOLOSS.items=MONOLOSS.items||{};MONOLOSS.items["x\\"/0"]=[1];\n'
    assert script_text("runs", None) == start + "MONOLOSS.runs=null;\n"


def test_numbers_keep_six_digits_and_undefined_is_null():
    assert [short(v) for v in (0.1234567, 1234567.0, 1e-12, math.nan, math.inf, -0.5)] == [
        0.123457, 1234570.0, 1e-12, None, None, -0.5,
    ]  # fmt: skip
    assert json_text(short_all([1.0, 0.25, math.nan, 1e7, -0.0])) == "[1,0.25,null,10000000,0]"
