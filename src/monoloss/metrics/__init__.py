"""Torchmetrics classes over the formulas of ``monoloss.functional``."""

from monoloss.metrics.class_purity import ClassPurity
from monoloss.metrics.mono_score import MonoScore
from monoloss.metrics.reconstruction import Reconstruction

__all__ = ["ClassPurity", "MonoScore", "Reconstruction"]
