"""Resumable runs of any model: settings, folder, checkpoints, trainer, signals."""
