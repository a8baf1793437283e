"""Configurations of training runs: what they refuse, in one sentence that names the key."""

from __future__ import annotations

from dataclasses import replace

import pytest

from monoloss.errors import InputError
from monoloss.sae.config import SAE_CONFIGS, InputScaling
from monoloss.training.config import SaeTraining, TrainingConfig
from support.saes import some_config
from support.training_runs import SETTINGS, a_run


@pytest.mark.door
def test_error_texts():
    topk = SETTINGS["topk"]
    for call, text in (
        (
            lambda: a_run({"a": replace(topk, mono_weight=0.0, mono_embeddings="scaled")}),
            "saes.a.mono_embeddings: got scaled; expected mono_weight above 0 to make use of it",
        ),
        (
            lambda: a_run({"a": replace(topk, mono_center=True, mono_embeddings="scaled")}),
            (
                "saes.a.mono_center: got True; "
                "expected mono_embeddings 'inputs': the mean that it takes off is that of the inputs"
            ),
        ),
        (
            lambda: replace(topk, lr_schedule="step"),
            "lr_schedule: got 'step'; expected one of 'constant', 'linear', 'cosine'",
        ),
        (lambda: replace(topk, warmup_steps=-1), "warmup_steps: got -1; expected an integer at least 0"),
        (
            lambda: a_run({"a": topk}, precision="16-mixed"),
            "precision: got '16-mixed'; expected one of '32-true', 'bf16-mixed'",
        ),
        (
            lambda: a_run({"a": topk}, checkpoint_every_minutes=0),
            "checkpoint_every_minutes: got 0; expected a number above 0.0",
        ),
        (
            lambda: a_run({"a": topk}, checkpoint_every_steps=0),
            "checkpoint_every_steps: got 0; expected an integer at least 1",
        ),
        (lambda: a_run({"a": topk}, keep_checkpoints=0), "keep_checkpoints: got 0; expected an integer at least 1"),
        (
            lambda: a_run({"a": topk}, loggers="wandb"),
            "loggers: got a str; expected a list of 'tensorboard', 'wandb' or both",
        ),
        (lambda: a_run({"a": topk}, loggers=["csv"]), "loggers: got 'csv'; expected one of 'tensorboard', 'wandb'"),
        (lambda: TrainingConfig([("a", topk)]), "saes: got a list; expected a mapping from names to SaeTraining"),
        (lambda: TrainingConfig({"a": topk.sae}), "saes['a']: got a TopKConfig; expected SaeTraining(sae, ...)"),
        (lambda: SaeTraining("topk"), f"sae: got a str; expected {SAE_CONFIGS}"),
        (lambda: replace(topk, mono_center="yes"), "mono_center: got a str; expected True or False"),
        (lambda: replace(topk, lr=float("inf")), "lr: got inf; expected a number above 0.0"),
        (
            lambda: replace(topk, seed="x"),
            "seed: got 'x'; expected an integer at least 0 and below 9223372036854775808",
        ),
        (lambda: TrainingConfig({3: topk}), "saes: the name 3: got a int; expected text"),
        (lambda: InputScaling(unit_norm="no"), "inputs.unit_norm: got a str; expected True or False"),
        (lambda: replace(topk.sae, tied="no"), "tied: got a str; expected True or False"),
        (lambda: replace(topk.sae, inputs=None), "inputs: got a NoneType; expected an InputScaling"),
        (lambda: replace(topk.sae, aux=None), "aux: got a NoneType; expected an AuxLoss"),
        (lambda: TrainingConfig({}), "saes: got no SAE; expected at least one"),
        (
            lambda: TrainingConfig({"a/b": topk}),
            "saes: got the name 'a/b'; expected names of letters, digits and _ - . +, no dot first",
        ),
        (
            lambda: TrainingConfig({".a": topk}),
            "saes: got the name '.a'; expected names of letters, digits and _ - . +, no dot first",
        ),
        (lambda: TrainingConfig({"a": topk}, epochs=0), "epochs: got 0; expected an integer at least 1"),
        (
            lambda: TrainingConfig({"a": topk}, log_every_steps=0),
            "log_every_steps: got 0; expected an integer at least 1",
        ),
        (lambda: replace(topk, mono_weight=-1.0), "mono_weight: got -1.0; expected a number at least 0.0"),
        (
            lambda: replace(topk, mono_weight=float("nan")),
            "mono_weight: got nan; expected a number at least 0.0",
        ),
        (lambda: replace(topk, mono_memory=1.0), "mono_memory: got 1.0; expected a number at least 0.0 and below 1.0"),
        (lambda: replace(topk, lr=0.0), "lr: got 0.0; expected a number above 0.0"),
        (lambda: replace(topk, adam_eps=0.0), "adam_eps: got 0.0; expected a number above 0.0"),
        (lambda: replace(topk, clip_norm=0.0), "clip_norm: got 0.0; expected a number above 0.0"),
        (
            lambda: replace(topk, redraw_dead_every_steps=0),
            "redraw_dead_every_steps: got 0; expected an integer at least 1",
        ),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value) == text


@pytest.mark.door
@pytest.mark.parametrize("variant", ["topk", "batch_topk", "vanilla"])
def test_only_jump_relu_has_thresholds_to_learn(variant):
    training = SaeTraining(some_config(variant, 8, 2), threshold_lr=1e-2)
    with pytest.raises(InputError) as caught:
        TrainingConfig({"a": training})
    expected = f"none for the variant {variant!r}, which has no thresholds to learn"
    assert str(caught.value) == f"saes.a.threshold_lr: got 0.01; expected {expected}"
    TrainingConfig({"a": replace(training, sae=some_config("jump_relu", 8))})


@pytest.mark.door
def test_names_that_cannot_name_folders():
    topk = SETTINGS["topk"]
    for names, text in (
        (["Base", "base"], "saes: got names that differ in case only; expected others: they become names of folders"),
        (["a" * 101], "saes: got a name of 101 characters; expected at most 100"),
    ):
        with pytest.raises(InputError) as caught:
            TrainingConfig(dict.fromkeys(names, topk))
        assert str(caught.value) == text
    assert list(TrainingConfig(dict.fromkeys(["a" * 100, "ä_1-.+"], topk)).saes) == ["a" * 100, "ä_1-.+"]
