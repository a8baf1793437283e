"""Matplotlib pictures (PNG) of evaluations and timings."""
