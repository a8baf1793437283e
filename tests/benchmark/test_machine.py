"""What a result file says of the machine and the commit."""

from __future__ import annotations

import json

import torch

from monoloss.benchmark import machine


def test_commit_is_told_only_in_a_clone(monkeypatch):
    answers = {"ls-files": "machine.py", "rev-parse": "abc1234\n", "diff": ""}
    monkeypatch.setattr(machine, "_git", lambda command, *_: answers[command])
    assert machine.machine_metadata()["commit"] == "abc1234"
    answers["diff"] = None
    assert machine.machine_metadata()["commit"] == "abc1234, changed"
    answers["ls-files"] = None
    metadata = machine.machine_metadata()
    assert metadata["commit"] is None
    assert metadata["threads"] == torch.get_num_threads()


def test_no_git_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert machine.machine_metadata()["commit"] is None


def test_a_result_is_written_with_the_metadata_of_the_machine(tmp_path):
    machine.write_measured(tmp_path / "result.json", {"rows": {"2": 0.5}})
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["rows"] == {"2": 0.5}
    assert result["about"] == machine.machine_metadata()
    assert set(result["about"]) == {"processor", "threads", "python", "torch", "monoloss", "commit"}
