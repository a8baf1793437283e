"""The command ``monoloss train``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from monoloss.commands.settings import config_of_run
from monoloss.errors import InputError

if TYPE_CHECKING:
    from monoloss.data.store import FeatureStore
    from monoloss.training.config_files import TrainingRecord


SETTINGS_IN = "monoloss.training.config_files"  # module whose SETTINGS may be given as options too


def train(
    config: str | None = None,
    store: str | None = None,
    out: str | None = None,
    validation: str | None = None,
    resume: str | None = None,
    print_config: bool = False,
    progress: bool = True,
    settings: Sequence[tuple[str, str]] = (),
) -> None:
    """Train one or several SAEs together on a feature store.

    Every setting of the file can be given as an option, which replaces that of the file: --epochs 20,
    --batch_size 1024, --saes.NAME.mono_weight 3e-4, --saes.NAME.sae.k 32. --sweep.NAME [1e-4,3e-4] trains that SAE once
    with each mono_weight. Ctrl-C and SIGTERM save the run at the end of the step; --resume continues it.

    Args:
        config: YAML file with the settings of monoloss.TrainingConfig; its SAEs are a mapping by name
        store: feature store with the rows to train on
        out: new folder for the run: resolved configuration, logs, checkpoints, trained SAEs
        validation: feature store with held-out rows; the SAEs are evaluated on it at the end and every
            validate_every_steps steps
        resume: folder of an interrupted run to resume, with the settings in it
        print_config: print the resolved configuration and exit
        progress: show progress bars
        settings: the settings that were given as options
    """
    file = config_of_run(config, resume, {"out": out, "print_config": print_config}, settings)
    from monoloss.training.config_files import config_text, read_config, with_place

    record = read_config(file, settings)
    if resume is not None:  # on the same data, which may have moved
        record = replace(record, store=store or record.store, validation=validation or record.validation)
    else:
        record = with_place(with_place(record, "store", store), "validation", validation)
    if print_config:
        from rich.console import Console

        Console(soft_wrap=True).out(config_text(record), end="", highlight=False)
        return
    folder = resume or out
    if not folder:
        raise InputError("--out", "nothing", "a folder for the run")
    _train(record, Path(folder), resume=resume is not None, progress=progress)


def _train(record: TrainingRecord, run: Path, *, resume: bool, progress: bool) -> None:
    """Train in the folder ``run`` and print the held-out measures of the SAEs."""
    from rich.console import Console
    from rich.markup import escape

    from monoloss.evaluation.result import Evaluation
    from monoloss.report.table import evaluation_table
    from monoloss.runs.layout import EVALUATIONS, SAES
    from monoloss.training.run import train_saes

    if record.store is None:
        raise InputError("store", "nothing", "a feature store, as --store or in the configuration")
    store = _open_store("store", record.store, record.store_fingerprint)
    validation = None
    if record.validation is not None:
        validation = _open_store("validation", record.validation, record.validation_fingerprint)
    saes = train_saes(store, record.training, run, validation=validation, resume=resume, progress=progress)
    console = Console()
    if validation is not None:
        evaluations = [Evaluation.load(run / EVALUATIONS / name) for name in saes]
        title = escape(f"{validation.n_rows} rows of {validation.folder.resolve().name}")
        console.print(evaluation_table({"held out": evaluations}, title))
    console.print(f"SAEs: {run / SAES}", soft_wrap=True, markup=False, highlight=False)


def _open_store(name: str, folder: str, fingerprint: str | None) -> FeatureStore:
    """Open a store and check that it has the fingerprint in the configuration, if that holds one."""
    from monoloss.data.store import FeatureStore

    store = FeatureStore(folder)
    if fingerprint is not None and store.fingerprint != fingerprint:
        expected = f"that of {name}_fingerprint, {fingerprint[:12]}...: the data of the configuration"
        raise InputError(name, f"{folder} with fingerprint {store.fingerprint[:12]}...", expected)
    return store
