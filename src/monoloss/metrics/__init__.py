"""Torchmetrics classes over the sums of ``functional``: streaming, mergeable, distributed; no arithmetic here."""

from monoloss.metrics.class_purity import ClassPurity
from monoloss.metrics.mono_score import MonoScore
from monoloss.metrics.reconstruction import Reconstruction

__all__ = ["ClassPurity", "MonoScore", "Reconstruction"]
