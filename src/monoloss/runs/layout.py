"""Names of the files and folders in the folder of a run. Tested in ``tests/runs/test_folder.py``."""

from __future__ import annotations

CONFIG_FILE = "config.yaml"  # the whole configuration, defaults included
LOGS = "logs"  # version_N/metrics.csv, a new version each time the run is resumed
CHECKPOINTS = "checkpoints"  # files for resuming the run
EVALUATIONS = "evaluations"  # one folder for each evaluated model
SAES = "saes"  # one model folder for each trained SAE
MODEL = "model"  # model folder of the fine-tuned model
