"""Names in the folder of a run; who reads a finished run needs no more than these."""

from __future__ import annotations

CONFIG_FILE = "config.yaml"  # the resolved configuration
LOGS = "logs"  # version_N/metrics.csv, a version each time the run goes on
CHECKPOINTS = "checkpoints"  # for resuming
EVALUATIONS = "evaluations"  # one folder each
SAES = "saes"  # the trained SAEs, a model folder each
MODEL = "model"  # the fine-tuned model
