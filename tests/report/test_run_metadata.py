"""What is known of a model and its training from the metadata of its evaluation."""

from __future__ import annotations

import pytest

from monoloss.report.run_metadata import settings_of
from support.reports import as_written_before, bare, evaluated, renamed, some_store

FINE_TUNED = {
    "model": "test_resnet with a layer",
    "backbone": "test_resnet",
    "training": {
        "model": {"backbone": "test_resnet", "pretrained": False},
        "data": {"images": "imagefolder:all", "split": "train"},
        "optimisation": {"lr": 0.03},
        "mono_weight": 1.5,
        "epochs": 4,
        "batch_size": 64,
        "seed": 7,
    },
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return some_store(tmp_path_factory.mktemp("runs") / "val")


def test_facts_say_what_was_run(store):
    base, mono = evaluated(store, {"base": 0.0, "mono": 0.1})
    training = mono.metadata["training"] | {"mono_memory": 0.9, "mono_center": True}
    encoder = {"name": "vit_small", "weights": "augreg", "preprocessing": None}
    mono = renamed(mono, "mono", training=training, encoder=encoder, centred=True, source="run/saes/mono")
    assert settings_of(base).metadata(base) == [
        ("Data", "val, 90 rows of width 32"),
        ("Scored on", "embeddings as they are"),
        ("Model", "TopK, 24 latents, k = 3"),
        ("Loss", "without MonoLoss"),
        ("Training", "2 epochs, learning rate 0.001, seed 0"),
        ("Evaluated with", f"monoloss {base.metadata['monoloss_version']}"),
    ]
    metadata = dict(settings_of(mono).metadata(mono))
    assert (metadata["Encoder"], metadata["Encoder weights"]) == ("vit_small", "augreg")
    assert metadata["Loss"] == "MonoLoss, weight 0.1, memory 0.9, centred"
    assert (metadata["Scored on"], metadata["Source"]) == ("centred embeddings", "run/saes/mono")


@pytest.mark.parametrize(
    ("variant", "title"),
    [
        ("topk", "TopK, 24 latents, k = 3"),
        ("topk_tied", "TopK, tied, 24 latents, k = 3"),
        ("batch_topk", "BatchTopK, 24 latents, k = 3"),
        ("jump_relu", "JumpReLU, 24 latents"),
        ("vanilla", "Vanilla, 24 latents"),
    ],
)
def test_the_model_is_known_from_new_and_from_older_files(store, variant, title):
    (evaluation,) = evaluated(store, {"one": 0.1}, variant)
    model = evaluation.metadata["model"].replace("aux=None", "aux=AuxLoss(k=16, weight=0.03125)")
    evaluation = renamed(evaluation, "one", model=model)
    assert settings_of(evaluation).long_title == title
    old = settings_of(as_written_before(evaluation))
    assert old.long_title == title
    assert old.mono_weight is None
    assert settings_of(evaluation).mono_weight == 0.1


def test_a_fine_tuned_model_is_known_by_backbone_weights_and_images():
    evaluation = bare(**FINE_TUNED)
    settings = settings_of(evaluation)
    assert settings.title == "Fine-tuned test_resnet"
    assert settings.long_title == "Fine-tuned test_resnet, from random weights, on imagefolder:all train"
    assert settings.loss == "MonoLoss, weight 1.5"
    metadata = dict(settings.metadata(evaluation))
    assert metadata["Model"] == "test_resnet with a layer, 3 latents"
    assert metadata["Training"] == "4 epochs, batches of 64, learning rate 0.03, seed 7"


@pytest.mark.parametrize(
    ("changed", "start"),
    [
        ({"pretrained": True}, "test_resnet"),
        ({"checkpoint": "first/backbone.safetensors"}, "first/backbone.safetensors"),
    ],
)
def test_fine_tuned_models_of_other_weights_are_not_compared(changed, start):
    training = FINE_TUNED["training"]
    other = {**FINE_TUNED, "training": {**training, "model": training["model"] | changed}}
    settings = settings_of(bare(**other))
    assert settings.long_title == f"Fine-tuned test_resnet, from {start}, on imagefolder:all train"
    again = {**FINE_TUNED, "training": {**training, "seed": 8, "mono_weight": 0.0}}
    assert settings_of(bare(**again)).key == settings_of(bare(**FINE_TUNED)).key
    assert settings.key != settings_of(bare(**FINE_TUNED)).key


@pytest.mark.parametrize("changed", [{"images": "imagefolder:others"}, {"split": "val"}])
def test_fine_tuned_models_on_other_images_are_not_compared(changed):
    training = FINE_TUNED["training"]
    other = {**FINE_TUNED, "training": {**training, "data": training["data"] | changed}}
    assert settings_of(bare(**other)).key != settings_of(bare(**FINE_TUNED)).key


def test_other_models_have_no_settings():
    settings = settings_of(bare(model="activations in a.npy", training=None))
    assert (settings.title, settings.key, settings.loss) == ("Other models", None, None)
