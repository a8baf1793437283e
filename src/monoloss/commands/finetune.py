"""``monoloss finetune``."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monoloss.commands.settings import part_settings
from monoloss.errors import InputError

if TYPE_CHECKING:
    from monoloss.finetune.config import FineTuneConfig

_OF_THE_DATA = "data."


def finetune(
    config: str | None = None,
    out: str | None = None,
    resume: str | None = None,
    print_config: bool = False,
    progress: bool = True,
    settings: Sequence[tuple[str, str]] = (),
) -> None:
    """Fine-tune a vision model with MonoLoss on a new layer, on images joined with their embeddings.

    Every setting of the file can be given as an option, over what the file says: --mono_weight 0.05, --epochs 20,
    --data.images imagefolder:PATH, --data.embeddings STORE, --model.backbone NAME, --optimisation.lr 1e-3. Ctrl-C and
    SIGTERM save the run at the end of the step; --resume goes on from there, with --data.images and the like if the
    data have moved. Started by torchrun, the processes share each batch.

    Args:
        config: YAML file with the settings of monoloss.finetune.config.FineTuneConfig
        out: folder for the run: resolved configuration, logs, checkpoints, the trained model; a new one
        resume: folder of a run that was stopped, to go on with it; its settings are in it
        print_config: print the resolved configuration and do nothing else
        progress: show a progress bar
        settings: the settings that were given as options
    """
    if resume is not None:
        given = {"config": config, "out": out, "print_config": print_config or None}
        others = [name for name, value in given.items() if value is not None]
        others += [key for key, _ in settings if not key.startswith(_OF_THE_DATA)]
        if others:
            needed = "none: a run goes on with the settings it has"
            raise InputError(f"--{others[0]}", "a value beside --resume", needed)
        config = str(Path(resume) / "config.yaml")
        if not Path(config).is_file():
            raise InputError(config, "no such file", "the folder of a run for --resume")
    if config is None:
        raise InputError("--config", "nothing", "a YAML file, or --resume with the folder of a run")
    from monoloss.finetune.config_files import FineTuneRecord, finetune_text, read_finetune

    settled = read_finetune(config, settings).config
    if print_config:
        from rich.console import Console

        Console(soft_wrap=True).out(finetune_text(FineTuneRecord(settled)), end="", highlight=False)
        return
    if not (out or resume):
        raise InputError("--out", "nothing", "a folder for the run")
    _fine_tune(settled, Path(resume or out or ""), resume=resume is not None, progress=progress)


def take_settings(argv: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Part the settings of a run from the other options, and say what is neither.

    Returns:
        What is left to parse, and arguments of ``finetune``.

    Raises:
        InputError: an option that is neither, or a setting without a value.
    """
    options = [name for name in signature(finetune).parameters if name != "settings"]
    return part_settings(argv, options, _settings)


def _settings() -> Sequence[str]:
    from monoloss.finetune.config_files import SETTINGS

    return SETTINGS


def _fine_tune(config: FineTuneConfig, run: Path, *, resume: bool, progress: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from monoloss.finetune.run import fine_tune
    from monoloss.finetune.run_folder import FineTuneFolder

    fine_tune(config, run, resume=resume, progress=progress)
    folder = FineTuneFolder(run)
    console, figures = Console(), folder.figures()
    if figures:
        table = Table(title="held out")
        for name in figures:
            table.add_column(name.replace("_", " "), justify="right")
        table.add_row(*(f"{value:.0f}" if name == "alive" else f"{value:.4f}" for name, value in figures.items()))
        console.print(table)
    console.print(f"model: {folder.model}", soft_wrap=True, markup=False, highlight=False)
