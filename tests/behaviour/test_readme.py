"""The README's examples run as they stand, one after the other, in a fresh folder."""

from __future__ import annotations

import re
from pathlib import Path

import torch

README = Path(__file__).parents[2] / "README.md"


def test_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    examples = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(examples) == 4
    for example in examples:
        names: dict[str, object] = {}  # each can be pasted alone
        exec(example, names)  # noqa: S102 - our own text
        if "scores" in names:
            assert names["scores"].shape == (128,)
        if "regularizer" in names:
            assert not names["regularizer"].is_open
            assert not any(module._forward_hooks for module in names["model"].modules())
    assert "n_defined=128" in capsys.readouterr().out
    assert (tmp_path / "run" / "evaluations" / "mono" / "evaluation.json").is_file()


def test_pictures_are_there():
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README.read_text(encoding="utf-8"))
    assert pictures
    for picture in pictures:
        assert (README.parent / picture).is_file()
