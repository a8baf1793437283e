"""Exact one-pass MonoScore, MonoLoss and sparse autoencoders whose latents mean one thing each."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from monoloss.version import __version__ as __version__

if TYPE_CHECKING:
    from monoloss.data.encoders import load_encoder
    from monoloss.data.extraction.run import extract
    from monoloss.data.images import open_images
    from monoloss.data.importers.hf_datasets import import_dataset
    from monoloss.data.importers.lmdb import import_lmdb
    from monoloss.data.importers.numpy import import_npy, import_npz
    from monoloss.data.importers.torch import import_pt
    from monoloss.data.store import FeatureStore
    from monoloss.errors import InputError, MissingExtraError
    from monoloss.evaluation.result import Evaluation
    from monoloss.evaluation.run import evaluate
    from monoloss.evaluation.stored_activations import StoredActivations
    from monoloss.finetune.config import FineTuneConfig
    from monoloss.finetune.evaluation import ImageActivations
    from monoloss.finetune.model.folder import load_finetuned
    from monoloss.finetune.run import fine_tune
    from monoloss.functional.loss import mono_loss
    from monoloss.functional.moments import MonoMoments
    from monoloss.functional.purity import class_purity
    from monoloss.functional.reconstruction import reconstruction_quality
    from monoloss.functional.score import mono_score
    from monoloss.losses import MonoLoss
    from monoloss.metrics import ClassPurity, MonoScore, Reconstruction
    from monoloss.regularizer import ActivationRegularizer
    from monoloss.report.page import write_report
    from monoloss.sae.config import AuxLoss, BatchTopKConfig, InputScaling, JumpReluConfig, TopKConfig, VanillaConfig
    from monoloss.sae.model import SparseAutoencoder
    from monoloss.sparse import SparseActivations
    from monoloss.training.config import SaeTraining, TrainingConfig
    from monoloss.training.run import train_saes

__all__ = [
    "ActivationRegularizer",
    "AuxLoss",
    "BatchTopKConfig",
    "ClassPurity",
    "Evaluation",
    "FeatureStore",
    "FineTuneConfig",
    "ImageActivations",
    "InputError",
    "InputScaling",
    "JumpReluConfig",
    "MissingExtraError",
    "MonoLoss",
    "MonoMoments",
    "MonoScore",
    "Reconstruction",
    "SaeTraining",
    "SparseActivations",
    "SparseAutoencoder",
    "StoredActivations",
    "TopKConfig",
    "TrainingConfig",
    "VanillaConfig",
    "class_purity",
    "evaluate",
    "extract",
    "fine_tune",
    "import_dataset",
    "import_lmdb",
    "import_npy",
    "import_npz",
    "import_pt",
    "load_encoder",
    "load_finetuned",
    "mono_loss",
    "mono_score",
    "open_images",
    "reconstruction_quality",
    "train_saes",
    "write_report",
]

_MODULE_OF = {  # modules are imported at first use: the command line starts without torch, the rest without extras
    "ActivationRegularizer": "monoloss.regularizer",
    "AuxLoss": "monoloss.sae.config",
    "BatchTopKConfig": "monoloss.sae.config",
    "ClassPurity": "monoloss.metrics",
    "Evaluation": "monoloss.evaluation.result",
    "FeatureStore": "monoloss.data.store",
    "FineTuneConfig": "monoloss.finetune.config",
    "ImageActivations": "monoloss.finetune.evaluation",
    "InputError": "monoloss.errors",
    "InputScaling": "monoloss.sae.config",
    "JumpReluConfig": "monoloss.sae.config",
    "MissingExtraError": "monoloss.errors",
    "MonoLoss": "monoloss.losses",
    "MonoMoments": "monoloss.functional.moments",
    "MonoScore": "monoloss.metrics",
    "Reconstruction": "monoloss.metrics",
    "SaeTraining": "monoloss.training.config",
    "SparseActivations": "monoloss.sparse",
    "SparseAutoencoder": "monoloss.sae.model",
    "StoredActivations": "monoloss.evaluation.stored_activations",
    "TopKConfig": "monoloss.sae.config",
    "TrainingConfig": "monoloss.training.config",
    "VanillaConfig": "monoloss.sae.config",
    "class_purity": "monoloss.functional.purity",
    "evaluate": "monoloss.evaluation.run",
    "extract": "monoloss.data.extraction.run",
    "fine_tune": "monoloss.finetune.run",
    "import_dataset": "monoloss.data.importers.hf_datasets",
    "import_lmdb": "monoloss.data.importers.lmdb",
    "import_npy": "monoloss.data.importers.numpy",
    "import_npz": "monoloss.data.importers.numpy",
    "import_pt": "monoloss.data.importers.torch",
    "load_encoder": "monoloss.data.encoders",
    "load_finetuned": "monoloss.finetune.model.folder",
    "mono_loss": "monoloss.functional.loss",
    "mono_score": "monoloss.functional.score",
    "open_images": "monoloss.data.images",
    "reconstruction_quality": "monoloss.functional.reconstruction",
    "train_saes": "monoloss.training.run",
    "write_report": "monoloss.report.page",
}

_NEEDS = {  # name: the extra that it needs; without it the name exists, and calling it says what to install
    "ImageActivations": "finetune",
    "extract": "vision",
    "fine_tune": "finetune",
    "import_dataset": "interop",
    "import_lmdb": "interop",
    "load_encoder": "vision",
    "load_finetuned": "finetune",
    "open_images": "vision",
    "train_saes": "train",
    "write_report": "report",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'monoloss' has no attribute {name!r}")
    try:
        value = getattr(import_module(_MODULE_OF[name]), name)
    except ModuleNotFoundError as error:
        return _without_extra(name, error)  # not stored: the extra may be installed meanwhile
    globals()[name] = value
    return value


def _without_extra(name: str, error: ModuleNotFoundError) -> Callable[..., Any]:
    """Return a function that raises `MissingExtraError`, so that ``import *`` and help work without the extra."""
    from monoloss.errors import MissingExtraError, missing_extra

    missing = missing_extra(error, _NEEDS.get(name))
    if name not in _NEEDS or not isinstance(missing, MissingExtraError):
        raise missing from error

    def absent(*_: Any, **_options: Any) -> Any:
        raise MissingExtraError(*missing.args) from error

    absent.__name__ = absent.__qualname__ = name
    absent.__module__ = __name__
    absent.__doc__ = f"Not installed: {missing}."
    return absent


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
