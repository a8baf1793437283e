"""The settings among the options of a run, its configuration file, and the device of a process."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from monoloss.commands.settings import config_of_run, device_of_process, take_settings
from monoloss.errors import InputError

MODULE = "settings_of_a_test"


def command(config=None, out=None, print_config=False, settings=()):
    """Stand for a command: only its signature counts."""


@pytest.fixture
def config_files(monkeypatch):
    monkeypatch.setitem(sys.modules, MODULE, SimpleNamespace(SETTINGS=("epochs", "saes")))
    return MODULE


@pytest.mark.parametrize(
    ("argv", "rest", "arguments"),
    [
        ([], [], {"settings": []}),
        (["--epochs", "3", "--out", "run"], ["--out", "run"], {"settings": [("epochs", "3")]}),
        (["--out=run", "--epochs=3"], ["--out=run"], {"settings": [("epochs", "3")]}),
        (["--saes.a.lr", "-1e-3"], [], {"settings": [("saes.a.lr", "-1e-3")]}),
        (["--saes.a.name=x=y"], [], {"settings": [("saes.a.name", "x=y")]}),
        (["--epochs", "3", "--epochs", "4"], [], {"settings": [("epochs", "3"), ("epochs", "4")]}),
        (["--print_config", "--help"], ["--help"], {"settings": [], "print_config": True}),
    ],
)
def test_settings_are_separated_from_options(argv, rest, arguments, config_files):
    words = list(argv)
    assert take_settings(argv, command, config_files) == (rest, arguments)
    assert argv == words


def test_the_configurations_are_imported_for_settings_only():
    assert take_settings(["--out", "run"], command, "no_such_module")[0] == ["--out", "run"]
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        take_settings(["--epochs", "3"], command, "no_such_module")


@pytest.mark.door
@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--epoch", "3"], "--epoch: got an unknown key; expected epochs, if that was meant"),
        (["--settings", "3"], "--settings: got an unknown key; expected "),
        (["--epochs"], "--epochs: got nothing; expected a value"),
        (["--epochs", "--out", "run"], "--epochs: got nothing; expected a value"),
    ],
)
def test_words_that_are_no_settings(argv, text, config_files):
    with pytest.raises(InputError) as caught:
        take_settings(argv, command, config_files)
    assert str(caught.value).startswith(text)


def test_the_file_of_a_new_and_of_a_resumed_run(tmp_path):
    given = {"out": None, "print_config": False}
    assert str(config_of_run("run.yaml", None, {"out": "run"}, [("epochs", "3")])) == "run.yaml"
    (tmp_path / "config.yaml").write_text("", encoding="utf-8")
    assert config_of_run(None, str(tmp_path), given, []) == tmp_path / "config.yaml"
    moved = [("data.images", "imagefolder:x")]
    assert config_of_run(None, str(tmp_path), given, moved, movable="data.") == tmp_path / "config.yaml"


@pytest.mark.door
def test_what_does_not_go_with_resume(tmp_path):
    run, none_of_it = str(tmp_path), "expected none: a run resumes with the settings in its folder"
    for arguments, text in (
        ((None, None, {}, []), "--config: got nothing; expected a YAML file, or --resume with the folder of a run"),
        (("c.yaml", run, {}, []), f"--config: got a value beside --resume; {none_of_it}"),
        ((None, run, {"out": "o"}, []), f"--out: got a value beside --resume; {none_of_it}"),
        ((None, run, {}, [("epochs", "3")]), f"--epochs: got a value beside --resume; {none_of_it}"),
        ((None, run, {}, [("datas", "3")], "data."), f"--datas: got a value beside --resume; {none_of_it}"),
        (
            (None, run, {}, []),
            f"{tmp_path / 'config.yaml'}: got no such file; expected the folder of a run for --resume",
        ),
    ):
        with pytest.raises(InputError) as caught:
            config_of_run(*arguments)
        assert str(caught.value) == text


@pytest.mark.parametrize(
    ("name", "n_gpus", "rank", "device"),
    [
        ("cpu", 2, "1", "cpu"),
        ("mps", 0, None, "mps"),
        ("cuda:1", 2, None, "cuda:1"),
        ("auto", 0, None, "cpu"),
        ("auto", 1, None, "cuda:0"),
        ("cuda", 2, "1", "cuda:1"),
    ],
)
def test_device_of_a_process(name, n_gpus, rank, device, monkeypatch):
    machine_with(n_gpus, rank, monkeypatch)
    assert device_of_process(name) == device


@pytest.mark.door
@pytest.mark.parametrize(
    ("n_gpus", "rank", "text"),
    [
        (0, None, "device: got 'cuda' on a machine without it; expected 'cpu' or 'auto'"),
        (2, "2", "device: got cuda for process 2 of this machine; expected a GPU for each process, or cpu"),
    ],
)
def test_a_process_without_a_gpu(n_gpus, rank, text, monkeypatch):
    machine_with(n_gpus, rank, monkeypatch)
    with pytest.raises(InputError) as caught:
        device_of_process("cuda")
    assert str(caught.value) == text


def machine_with(n_gpus, rank, monkeypatch):
    """Pretend that the machine has so many GPUs and that torchrun numbered this process."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: n_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
