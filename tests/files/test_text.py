"""Text files of other programs, line by line."""

from __future__ import annotations

import pytest

from monoloss.errors import InputError
from monoloss.files.text import read_lines


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"a", ["a"]),
        (b"a\nb\n", ["a", "b"]),
        (b"a\r\n\r\nb", ["a", "", "b"]),
        (b"\n", [""]),
        ("\ufeffé\u2028x\n".encode(), ["é\u2028x"]),  # a byte order mark; only line feeds end a line
    ],
)
def test_lines_without_their_ends(tmp_path, content, lines):
    (tmp_path / "x.txt").write_bytes(content)
    assert read_lines(tmp_path / "x.txt") == lines


@pytest.mark.door
def test_error_texts(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    for name, text in (
        ("latin.txt", "got no UTF-8 (unexpected end of data); expected a text file, or an .npy file"),
        ("none.txt", "got No such file or directory; expected a text file"),
    ):
        with pytest.raises(InputError) as caught:
            read_lines(tmp_path / name)
        assert str(caught.value) == f"{tmp_path / name}: {text}"
