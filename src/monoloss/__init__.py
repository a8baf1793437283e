"""Exact one-pass MonoScore, MonoLoss and sparse autoencoders whose latents mean one thing each."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from monoloss.errors import InputError, MissingExtraError, missing_extra
from monoloss.functional.loss import mono_loss
from monoloss.functional.moments import MonoMoments
from monoloss.functional.purity import class_purity
from monoloss.functional.reconstruction import reconstruction_quality
from monoloss.functional.score import mono_score
from monoloss.losses import MonoLoss
from monoloss.sae.config import AuxLoss, BatchTopKConfig, InputScaling, JumpReluConfig, TopKConfig, VanillaConfig
from monoloss.sparse import SparseActivations

if TYPE_CHECKING:
    from monoloss.data.encoders import load_encoder
    from monoloss.data.extraction.run import extract
    from monoloss.data.images import open_images
    from monoloss.data.importers.hf_datasets import import_dataset
    from monoloss.data.importers.lmdb import import_lmdb
    from monoloss.data.importers.numpy import import_npy, import_npz
    from monoloss.data.importers.torch import import_pt
    from monoloss.data.store import FeatureStore
    from monoloss.evaluation.result import Evaluation
    from monoloss.evaluation.run import evaluate
    from monoloss.finetune.config import FineTuneConfig
    from monoloss.finetune.model.folder import load_finetuned
    from monoloss.finetune.run import fine_tune
    from monoloss.metrics import ClassPurity, MonoScore, Reconstruction
    from monoloss.regularizer import ActivationRegularizer
    from monoloss.report.page import write_report
    from monoloss.sae.model import SparseAutoencoder
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

# names whose modules import more than torch and safetensors: found on first use
_ON_FIRST_USE = {
    "ActivationRegularizer": "monoloss.regularizer",
    "ClassPurity": "monoloss.metrics",
    "Evaluation": "monoloss.evaluation.result",
    "FeatureStore": "monoloss.data.store",
    "FineTuneConfig": "monoloss.finetune.config",
    "MonoScore": "monoloss.metrics",
    "Reconstruction": "monoloss.metrics",
    "SaeTraining": "monoloss.training.config",
    "SparseAutoencoder": "monoloss.sae.model",
    "TrainingConfig": "monoloss.training.config",
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
    "open_images": "monoloss.data.images",
    "train_saes": "monoloss.training.run",
    "write_report": "monoloss.report.page",
}


def __getattr__(name: str) -> Any:
    if name not in _ON_FIRST_USE:
        raise AttributeError(f"module 'monoloss' has no attribute {name!r}")
    try:
        module = import_module(_ON_FIRST_USE[name])
    except ModuleNotFoundError as error:
        raise missing_extra(error) from error
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
