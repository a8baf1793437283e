"""Sparse activations, their products, and the selection of the largest entries."""

from monoloss.sparse.activations import Activations, SparseActivations

__all__ = ["Activations", "SparseActivations"]
