"""The files and folders that CONTRIBUTING.md names exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PLACES = (ROOT, ROOT / "src" / "monoloss")


def named_paths() -> set[str]:
    """Paths in backticks, but for patterns such as ``tests/P/test_NAME.py``."""
    paths = set(re.findall(r"`([\w./-]+(?:\.py|\.md|\.toml|/))`", TEXT))
    return {path for path in paths if not re.search(r"NAME|/P/", path)}


def test_paths_exist():
    paths = named_paths()
    assert len(paths) > 40
    assert [path for path in sorted(paths) if not any((place / path).exists() for place in PLACES)] == []


def test_the_tree_shows_every_folder_and_top_module():
    tree = TEXT.split("```\nsrc/monoloss/\n")[1].split("```")[0].split("\ntests/")[0]
    shown = set(re.findall(r"[─ ]([\w./]+?)/?,? +\S", tree))
    source = ROOT / "src" / "monoloss"
    tops = {path.name for path in source.glob("*.py") if not path.name.startswith("__") and path.name != "version.py"}
    packages = {path.parent.name for path in source.rglob("__init__.py") if path.parent != source}
    assert tops | packages <= shown, sorted((tops | packages) - shown)
