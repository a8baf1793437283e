"""What the commands that start or resume a run share: the settings among their options, and the file of the run."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

from monoloss.errors import InputError
from monoloss.runs.layout import CONFIG_FILE


def take_settings(
    argv: Sequence[str], command: Callable[..., None], config_files: str
) -> tuple[list[str], dict[str, Any]]:
    """Part the settings of a run from the options of a command.

    Args:
        argv: the words behind the command's name.
        command: its function; it takes ``settings`` and ``print_config``.
        config_files: name of the module whose ``SETTINGS`` are the first parts of the settings' names; imported only
            where there is an option that is none of the command's.

    Returns:
        What is left to parse, and arguments of the command.

    Raises:
        InputError: an option that is neither, or a setting without a value.
    """
    options = [name for name in signature(command).parameters if name != "settings"]
    return part_settings(argv, options, lambda: import_module(config_files).SETTINGS)


def part_settings(
    argv: Sequence[str], options: Sequence[str], settings_of: Callable[[], Sequence[str]]
) -> tuple[list[str], dict[str, Any]]:
    """Part the settings of a run from the other options, and say what is neither.

    Args:
        argv: the words of the command line.
        options: names of the other options.
        settings_of: gives the first parts of the settings' names; called where there is an option that is none of the
            others, because the configurations take time to load.

    Returns:
        What is left to parse, and the arguments ``settings`` and, where it was asked for, ``print_config``.

    Raises:
        InputError: an option that is neither, or a setting without a value.
    """
    rest: list[str] = []
    settings: list[tuple[str, str]] = []
    more: dict[str, Any] = {"settings": settings}
    words = list(argv)
    while words:
        word = words.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if word == "--print_config":  # which the parser would take for its own
            more["print_config"] = True
        elif not word.startswith("--") or name in ("help", *options):
            rest.append(word)
        elif name.partition(".")[0] not in settings_of():
            from monoloss.files.dataclasses import unknown_key

            raise unknown_key("--", name, [*options, *settings_of()])
        elif not equals and (not words or words[0].startswith("--")):
            raise InputError(word, "nothing", "a value")
        else:
            settings.append((name, value if equals else words.pop(0)))
    return rest, more


def config_of_run(
    config: str | None,
    resume: str | None,
    given: dict[str, object],
    settings: Sequence[tuple[str, str]],
    movable: str | None = None,
) -> Path:
    """Find the configuration file of a run that is to start (``config``) or to be resumed (that in its folder).

    Args:
        config: file that was given.
        resume: folder of a run that was stopped.
        given: other options that a resumed run has no use for; None and False: not given.
        settings: the settings that were given as options.
        movable: beginning of the settings that may be given to a resumed run.

    Raises:
        InputError: neither is given, or something beside ``resume``; the folder holds no configuration.
    """
    if resume is not None:
        others = [name for name, value in {"config": config, **given}.items() if value]
        others += [key for key, _ in settings if movable is None or not key.startswith(movable)]
        if others:
            expected = "none: a run goes on with the settings it has"
            raise InputError(f"--{others[0]}", "a value beside --resume", expected)
        file = Path(resume) / CONFIG_FILE
        if not file.is_file():
            raise InputError(str(file), "no such file", "the folder of a run for --resume")
        return file
    if config is None:
        raise InputError("--config", "nothing", "a YAML file, or --resume with the folder of a run")
    return Path(config)


def device_of_process(name: str) -> str:
    """Return the device as torch calls it: of several processes on a machine, each has its own GPU."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cuda":
        return name
    if not torch.cuda.is_available():
        raise InputError("device", "'cuda' on a machine without it", "'cpu' or 'auto'")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= torch.cuda.device_count():
        raise InputError("device", f"cuda for process {local} of this machine", "a GPU for each process, or cpu")
    return f"cuda:{local}"
