"""Evaluation: one pass over a store, every row once, in stored order."""
