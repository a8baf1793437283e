"""Options of the commands that start or resume a run: settings, the configuration file, the device."""

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
    """Separate the settings of a run, ``--NAME VALUE`` or ``--NAME=VALUE``, from the options of a command.

    Args:
        argv: the words after the command's name.
        command: function of the command, with the arguments ``settings`` and ``print_config``.
        config_files: name of the module whose ``SETTINGS`` are the first parts of the settings' names; imported only
            if there is an option that is not one of the command's, because the configurations take time to import.

    Returns:
        The other words, for the parser; and arguments of the command: ``settings``, a list of (name, value), and
        ``print_config`` if it is among the words.

    Raises:
        InputError: an unknown option, or a setting without a value.
    """
    options = [name for name in signature(command).parameters if name != "settings"]
    rest: list[str] = []
    settings: list[tuple[str, str]] = []
    arguments: dict[str, Any] = {"settings": settings}
    words = list(argv)
    while words:
        word = words.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if word == "--print_config":  # jsonargparse has an option of that name, too
            arguments["print_config"] = True
        elif not word.startswith("--") or name in ("help", *options):
            rest.append(word)
        elif name.partition(".")[0] not in (setting_names := import_module(config_files).SETTINGS):
            from monoloss.files.dataclasses import unknown_key

            raise unknown_key("--", name, [*options, *setting_names])
        elif not equals and (not words or words[0].startswith("--")):
            raise InputError(word, "nothing", "a value")
        else:
            settings.append((name, value if equals else words.pop(0)))
    return rest, arguments


def config_of_run(
    config: str | None,
    resume: str | None,
    given: dict[str, object],
    settings: Sequence[tuple[str, str]],
    movable: str | None = None,
) -> Path:
    """Return the configuration file of a run: ``config`` for a new run, else that in the folder ``resume``.

    Args:
        config: value of ``--config``.
        resume: value of ``--resume``, the folder of an interrupted run.
        given: values of other options that are refused beside ``resume``; None or False where not given.
        settings: (name, value) of the settings given as options, which are refused beside ``resume``.
        movable: prefix of the settings that are allowed beside ``resume``.

    Raises:
        InputError: neither is given, or another option beside ``resume``; the folder has no configuration file.
    """
    if resume is not None:
        others = [name for name, value in {"config": config, **given}.items() if value]
        others += [key for key, _ in settings if movable is None or not key.startswith(movable)]
        if others:
            expected = "none: a run resumes with the settings in its folder"
            raise InputError(f"--{others[0]}", "a value beside --resume", expected)
        file = Path(resume) / CONFIG_FILE
        if not file.is_file():
            raise InputError(str(file), "no such file", "the folder of a run for --resume")
        return file
    if config is None:
        raise InputError("--config", "nothing", "a YAML file, or --resume with the folder of a run")
    return Path(config)


def device_of_process(name: str) -> str:
    """Return the torch name of a device: "auto" is cuda if available, else cpu; cuda is GPU number ``LOCAL_RANK``."""
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
