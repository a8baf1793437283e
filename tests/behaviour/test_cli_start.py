"""How the command line starts: it answers without loading what it does not need, and Ctrl-C ends it at any moment."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from monoloss.cli import COMMANDS

START = """
import contextlib, io, shlex, sys
before = set(sys.modules)
from monoloss.cli import main
for line in sys.stdin.read().splitlines():
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(shlex.split(line))
    print("CALL", code, *(out.getvalue() + err.getvalue()).split())
print("LOADED", *(set(sys.modules) - before))
"""
SETTINGS = "batch_size: 50\nsaes: {one: {sae: {variant: topk, n_latents: 8, k: 2}}}\n"
PARSER = {"attr", "attrs", "docstring_parser", "jsonargparse", "typeshed_client", "typing_extensions", "yaml"}

WITHOUT_PARSER = {  # command line: words of the answer
    "--help": "COMMAND",
    "-h": "COMMAND",
    "--version": "0.",
    "": "got nothing",
    "paint": "an unknown command",
    "trian": "expected train, if that was meant",
    "--sed 1": "an unknown option",
}
WITHOUT_PARSER_BUT_SETTINGS = {
    "train --confg x": "expected config, if that was meant",
    "train --epochz 3": "expected epochs, if that was meant",
    "train --epochs": "--epochs: got nothing",
    "finetune --data_imagez 3": "an unknown key",
}
WITH_PARSER = {
    **{f"{command} --help": "--progress" for command in COMMANDS if command != "info"},
    "info --help": "--verify",
    "demo --sed 1": "unrecognized arguments: --sed",
    "demo --seed": "expected one argument",
    "demo --seed x": "Expected a <class 'int'>",
    "evaluate --store s --device tpu": "device",
    "evaluate --saes s": "are required: store",
    "evaluate --store s --key k": "--key: got 'k'",
    "evaluate --store s --images i": "--images: got 'i'",
    "evaluate --store s --split t": "--split: got 't'",
    "extract": "are required: encoder, images, out",
    "report --out r": "are required: runs",
    "import": "are required: source, out",
    "import nowhere.npz --out s": "no such file or folder",
    "import run.yaml --out s": "kind: got 'auto'",
    "import run.yaml --kind npy --split a --out s": "split: got 'a' for a source of kind npy",
    "info nowhere": "no such folder",
    "info . --verify": "a folder with none of",
    "benchmark --rounds many": "rounds",
}
WITH_PARSER_AND_SETTINGS = {
    "train": "--config: got nothing",
    "train --resume r --epochs 3": "--epochs: got a value beside --resume",
    "train --resume r": "config.yaml: got no such file",
    "train --config nowhere.yaml": "nowhere.yaml",
    "train --config run.yaml": "--out: got nothing",
    "train --config run.yaml --epochs x": "epochs: got 'x'",
    "train --config run.yaml --saes.one.mono_weigth 3": "saes.one.mono_weigth: got an unknown key",
    "train --config run.yaml --progress perhaps": "progress",
    "finetune --data.images x": "--config: got nothing",
    "finetune --config run.yaml --epochs 3": "saes: got an unknown key",
}
DATACLASSES = {"monoloss.checks", "monoloss.checks.values", "monoloss.files.dataclasses"}


def started(lines: list[str], folder: Path) -> tuple[list[str], set[str], set[str]]:
    """What each command line answers, and the packages and the modules of ours that they load together."""
    (folder / "run.yaml").write_text(SETTINGS, encoding="utf-8")
    text = "\n".join(lines) + "\n"
    run = subprocess.run(
        [sys.executable, "-c", START], input=text, capture_output=True, text=True, check=True, cwd=folder
    )
    *answers, loaded = run.stdout.splitlines()
    modules = {name for name in loaded.split()[1:] if "cython" not in name}  # that of PyYAML names its own version
    packages = {name.partition(".")[0] for name in modules} - sys.stdlib_module_names - {"monoloss", "_yaml"}
    return answers, packages, {name for name in modules if name.startswith("monoloss.")}


def check_answers(expected: dict[str, str], answers: list[str]) -> None:
    """Each line is answered by what it should say, help with exit code 0 and faults with 2."""
    for (line, words), answer in zip(expected.items(), answers, strict=True):
        good = {"--help", "-h", "--version"} & set(shlex.split(line))
        assert answer.startswith(f"CALL {0 if good else 2} "), (line, answer)
        assert " ".join(words.split()) in answer, (line, answer)


def test_what_needs_no_parser(tmp_path):
    answers, packages, ours = started(list(WITHOUT_PARSER), tmp_path)
    check_answers(WITHOUT_PARSER, answers)
    assert packages == set()
    commands = {command.module for command in COMMANDS.values()}
    light = {
        "cli",
        "commands",
        "commands.settings",
        "errors",
        "files",
        "files.atomic",
        "files.hub",
        "runs",
        "runs.layout",
    }
    light |= {"terminal", "version"}
    assert ours == {*commands, *DATACLASSES, *(f"monoloss.{name}" for name in light)}


def test_version_alone(tmp_path):
    _, packages, ours = started(["--version"], tmp_path)
    assert (packages, ours) == (set(), {"monoloss.cli", "monoloss.errors", "monoloss.version"})


def test_unknown_settings_need_no_parser(tmp_path):
    answers, packages, _ = started(list(WITHOUT_PARSER_BUT_SETTINGS), tmp_path)
    check_answers(WITHOUT_PARSER_BUT_SETTINGS, answers)
    assert packages == {"yaml"}


def test_what_the_parser_answers(tmp_path):
    answers, packages, _ = started(list(WITH_PARSER), tmp_path)
    check_answers(WITH_PARSER, answers)
    assert packages <= PARSER


def test_what_the_parser_and_the_settings_answer(tmp_path):
    answers, packages, _ = started(list(WITH_PARSER_AND_SETTINGS), tmp_path)
    check_answers(WITH_PARSER_AND_SETTINGS, answers)
    assert packages <= PARSER


def test_only_the_command_that_is_asked_for_is_loaded(tmp_path):
    _, _, ours = started(["report --help"], tmp_path)
    assert ours == {
        *("monoloss.cli", "monoloss.errors", "monoloss.version"),
        *("monoloss.commands", "monoloss.commands.options", "monoloss.commands.report"),
    }


INTERRUPT = "import os, signal; os.kill(os.getpid(), signal.SIGINT); [None for _ in range(1000)]"


def heed_ctrl_c() -> None:
    """Undo what a shell does to the processes that it starts in the background: they ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("package", ["jsonargparse", "torch"])
@pytest.mark.parametrize("body", [INTERRUPT, f"exec({INTERRUPT!r})"], ids=["import", "exec"])
def test_ctrl_c_while_a_package_loads(tmp_path, package, body):
    (tmp_path / "stubs").mkdir()
    (tmp_path / "stubs" / f"{package}.py").write_text(body, encoding="utf-8")
    (tmp_path / "manifest.json").touch()
    path = os.pathsep.join([str(tmp_path / "stubs"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    run = subprocess.run(
        [sys.executable, "-m", "monoloss", "info", str(tmp_path)],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path},
        preexec_fn=heed_ctrl_c,
    )  # fmt: skip
    assert (run.returncode, run.stdout, run.stderr) == (130, "", "monoloss: interrupted\n")
