"""Settings of fine-tuning runs in YAML files: written in full, read with options."""

from __future__ import annotations

import pytest

from monoloss.finetune.config import AugmentationConfig, DataConfig, LoraConfig, ModelConfig, OptimisationConfig
from monoloss.finetune.config_files import FineTuneRecord, finetune_text, read_finetune
from monoloss.finetune.run_folder import FINETUNE_RUN
from support.finetune_configs import CONFIG, written


@pytest.mark.parametrize("record", [FineTuneRecord(CONFIG), FineTuneRecord(CONFIG, "a1", "b2")])
def test_a_file_holds_all_of_it(record, tmp_path):
    file = written(tmp_path, finetune_text(record))
    assert read_finetune(file) == record
    assert FINETUNE_RUN.read(file)[FINETUNE_RUN.fingerprint] == record.train_fingerprint


def test_a_short_file_with_options(tmp_path):
    file = written(tmp_path, "model: {backbone: a, lora: {rank: 4}}\ndata: {images: b}\naugmentation: {flip: 0}\n")
    options = [("model.lora.alpha", "8"), ("optimisation.lr", "1e-3"), ("epochs", "3"), ("data.workers", "2")]
    config = read_finetune(file, options).config
    assert config.model == ModelConfig("a", lora=LoraConfig(4, 8.0))
    assert config.data == DataConfig("b", workers=2)
    assert config.augmentation == AugmentationConfig(flip=0.0)
    assert config.optimisation == OptimisationConfig(lr=1e-3)
    assert config.epochs == 3
    assert read_finetune(file, [("model.lora", "null")]).config.model.lora is None
