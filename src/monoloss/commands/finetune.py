"""The command ``monoloss finetune``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from monoloss.commands.settings import config_of_run
from monoloss.errors import InputError

if TYPE_CHECKING:
    from monoloss.finetune.config import FineTuneConfig

SETTINGS_IN = "monoloss.finetune.config_files"  # module whose SETTINGS may be given as options too


def finetune(
    config: str | None = None,
    out: str | None = None,
    resume: str | None = None,
    print_config: bool = False,
    progress: bool = True,
    settings: Sequence[tuple[str, str]] = (),
) -> None:
    """Fine-tune a vision model with MonoLoss on a new layer, on images joined with their embeddings.

    Every setting of the file can be given as an option, which replaces that of the file: --mono_weight 0.05,
    --epochs 20, --data.images imagefolder:PATH, --data.embeddings STORE, --model.backbone NAME, --optimisation.lr 1e-3.
    Ctrl-C and SIGTERM save the run at the end of the step; --resume continues it, with --data.images and the like if
    the data have moved. Started by torchrun, the processes share each batch.

    Args:
        config: YAML file with the settings of monoloss.finetune.config.FineTuneConfig
        out: new folder for the run: resolved configuration, logs, checkpoints, the trained model
        resume: folder of an interrupted run to resume, with the settings in it
        print_config: print the resolved configuration and exit
        progress: show a progress bar
        settings: the settings that were given as options
    """
    file = config_of_run(config, resume, {"out": out, "print_config": print_config}, settings, movable="data.")
    from monoloss.finetune.config_files import FineTuneRecord, finetune_text, read_finetune

    resolved = read_finetune(file, settings).config
    if print_config:
        from rich.console import Console

        Console(soft_wrap=True).out(finetune_text(FineTuneRecord(resolved)), end="", highlight=False)
        return
    folder = resume or out
    if not folder:
        raise InputError("--out", "nothing", "a folder for the run")
    _fine_tune(resolved, Path(folder), resume=resume is not None, progress=progress)


def _fine_tune(config: FineTuneConfig, run: Path, *, resume: bool, progress: bool) -> None:
    """Fine-tune in the folder ``run`` and print the held-out measures of the model."""
    from rich.console import Console
    from rich.table import Table

    from monoloss.finetune.run import fine_tune
    from monoloss.finetune.run_folder import validation_measures
    from monoloss.runs.layout import MODEL

    fine_tune(config, run, resume=resume, progress=progress)
    console, measures = Console(), validation_measures(run)
    if measures:
        table = Table(title="held out")
        for name in measures:
            table.add_column(name.replace("_", " "), justify="right")
        table.add_row(*(f"{value:.0f}" if name == "alive" else f"{value:.4f}" for name, value in measures.items()))
        console.print(table)
    console.print(f"model: {run / MODEL}", soft_wrap=True, markup=False, highlight=False)
