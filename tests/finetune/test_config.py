"""The settings of a fine-tuning run: what they refuse."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from monoloss.errors import InputError
from monoloss.finetune.config import FineTuneConfig
from monoloss.finetune.config_files import FineTuneRecord, finetune_text, read_finetune
from support.finetune_configs import CONFIG, DATA, MODEL, written


@pytest.mark.door
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"epochs": "0"}, "epochs: got 0; expected an integer at least 1"),
        ({"epochs": "null"}, "epochs: got None; expected an integer"),
        ({"batch_size": "1.5"}, "batch_size: got 1.5; expected an integer"),
        ({"epoch": "1"}, "epoch: got an unknown key; expected epochs, if that was meant"),
        ({"model.top_k": "0"}, "model.top_k: got 0; expected an integer at least 1"),
        ({"model.backbone": "3"}, "model.backbone: got 3; expected text"),
        ({"model.lora.rank": "0"}, "model.lora.rank: got 0; expected an integer at least 1"),
        ({"model.lora.dropout": "1"}, "model.lora.dropout: got 1.0; expected a number at least 0.0 and below 1.0"),
        ({"data.join_on": "path"}, "data.join_on: got 'path'; expected one of 'id', 'name'"),
        ({"data.workers": "-1"}, "data.workers: got -1; expected an integer at least 0"),
        ({"data.embeddings": "null"}, "data.embeddings: got nothing; expected a feature store, because mono_weight is"),
        ({"augmentation.flip": "1.5"}, "augmentation.flip: got 1.5; expected at most 1"),
        ({"augmentation.min_area": "0"}, "augmentation.min_area: got 0.0; expected a number above 0"),
        ({"augmentation.mixup": "-1"}, "augmentation.mixup: got -1.0; expected a number at least 0"),
        ({"augmentation.repeats": "3"}, "augmentation.repeats: got 3; expected a divisor of batch_size, 1024"),
        (
            {"augmentation.interpolation": "nearest"},
            "augmentation.interpolation: got 'nearest'; expected one of 'biline",
        ),
        ({"optimisation.lr": "0"}, "optimisation.lr: got 0.0; expected a number above 0"),
        (
            {"optimisation.momentum": "1"},
            "optimisation.momentum: got 1.0; expected a number at least 0.0 and below 1.0",
        ),
        (
            {"optimisation.schedule": "linear"},
            "optimisation.schedule: got 'linear'; expected one of 'constant', 'cosine",
        ),
        (
            {"optimisation.ema_decay": "1"},
            "optimisation.ema_decay: got 1.0; expected a number at least 0.0 and below 1",
        ),
        ({"optimisation.clip_norm": "0"}, "optimisation.clip_norm: got 0.0; expected a number above 0"),
        (
            {"optimisation.warmup_epochs": "90"},
            "optimisation.warmup_epochs: got 90; expected fewer than the run's 90 ep",
        ),
        ({"precision": "16-mixed"}, "precision: got '16-mixed'; expected one of '32-true', 'bf16-mixed'"),
        ({"loggers": "[tb]"}, "loggers: got 'tb'; expected one of 'tensorboard', 'wandb'"),
        ({"mono_weight": "0"}, "mono_center: got True; expected mono_weight above 0 to make use of it"),
        ({"mono_memory": "1"}, "mono_memory: got 1.0; expected a number at least 0.0 and below 1.0"),
        ({"seed": "-1"}, "seed: got -1; expected an integer at least 0"),
        ({"checkpoint_every_minutes": "0"}, "checkpoint_every_minutes: got 0.0; expected a number above 0"),
    ],
)
def test_what_makes_no_run_is_refused(options, text, tmp_path):
    file = written(tmp_path, finetune_text(FineTuneRecord(CONFIG)))
    with pytest.raises(InputError) as refusal:
        read_finetune(file, list(options.items()))
    assert str(refusal.value).startswith(text)


@pytest.mark.door
@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: FineTuneConfig("resnet50", DATA), "model: got a str; expected ModelConfig(backbone, ...)"),
        (lambda: replace(CONFIG, data="cifar10:data"), "data: got a str; expected DataConfig(images, ...)"),
        (lambda: replace(CONFIG, augmentation=None), "augmentation: got a NoneType; expected AugmentationConfig(...)"),
        (lambda: replace(CONFIG, optimisation=0.1), "optimisation: got a float; expected OptimisationConfig(...)"),
        (lambda: replace(MODEL, lora=16), "model.lora: got a int; expected LoraConfig(rank, alpha), or None"),
        (lambda: replace(DATA, validation_split=None, validation_embeddings="store"),
         "data.validation_embeddings: got store; expected data.validation or data.validation_split to make use of it"),
    ],
)  # fmt: skip
def test_what_is_no_configuration_is_refused(make: Any, text):
    with pytest.raises(InputError) as refusal:
        make()
    assert str(refusal.value) == text


@pytest.mark.door
@pytest.mark.parametrize(
    ("unused", "used", "expected"),
    [
        ({"optimisation.step_epochs": 10}, {"optimisation.schedule": "step"}, "schedule 'step'"),
        ({"optimisation.step_factor": 0.5}, {"optimisation.schedule": "step"}, "schedule 'step'"),
        ({"optimisation.warmup_from": 0.5}, {"optimisation.warmup_epochs": 2}, "warmup_epochs above 0"),
        ({"optimisation.ema_every_steps": 8}, {"optimisation.ema_decay": 0.5}, "ema_decay"),
        ({"optimisation.ema_adjusted": False}, {"optimisation.ema_decay": 0.5}, "ema_decay"),
        ({"augmentation.mix_embeddings": False}, {"augmentation.mixup": 0.2}, "mixup or cutmix above 0"),
        ({"augmentation.mix_embeddings": False}, {"augmentation.cutmix": 0.2}, "mixup or cutmix above 0"),
    ],
)
def test_options_that_nothing_makes_use_of_are_refused(unused, used, expected, tmp_path):
    file = written(tmp_path, "model: {backbone: a}\ndata: {images: b}\n")
    ((name, value),) = unused.items()
    with pytest.raises(InputError) as refusal:
        read_finetune(file, [(name, str(value))])
    assert str(refusal.value) == f"{name}: got {value}; expected {expected} to make use of it"
    config = read_finetune(file, [(key, str(given)) for key, given in (unused | used).items()]).config
    part, _, field = name.partition(".")
    assert getattr(getattr(config, part), field) == value
