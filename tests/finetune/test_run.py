"""A fine-tuning run: its weights against a loop by hand, the files of its folder, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from monoloss.errors import InputError
from monoloss.finetune.config import AugmentationConfig, DataConfig, FineTuneConfig, LoraConfig, OptimisationConfig
from monoloss.finetune.config_files import read_finetune
from monoloss.finetune.images.seeds import seed_of
from monoloss.finetune.model.folder import load_finetuned
from monoloss.finetune.model.model import FineTuneModel
from monoloss.finetune.optimiser import make_sgd
from monoloss.finetune.run import decay_of, fine_tune, open_data, sgd_of, training_batches, validation_batches
from monoloss.finetune.run_folder import validation_measures
from monoloss.functional.loss import mono_loss
from support.finetune_models import model_of
from support.finetune_runs import N_STEPS, a_run, assert_equal_weights, data_in, logged_by, trained, without_average
from support.image_folders import labelled, store_of


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataConfig:
    return data_in(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    """The folder and the weights of a finished run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, trained(a_run(data), folder)


def by_hand(config: FineTuneConfig) -> tuple[FineTuneModel, FineTuneModel]:
    """The same training, plainly: the weights, and their average."""
    data = open_data(config.data)
    model = model_of(config.model, data.class_names, config.seed).train()
    batches = training_batches(config, data, model.preprocessing)
    recipe = sgd_of(config, len(batches))
    sgd, factor = make_sgd(model, recipe), recipe.factor
    average, n_averaged = None, 0
    warmup = config.optimisation.warmup_epochs * len(batches)
    for step in range(config.epochs * len(batches)):
        if step % len(batches) == 0:
            rest = iter(batches)
        batch = next(rest)
        for group in sgd.param_groups:
            group["lr"] = config.optimisation.lr * factor(step)
        torch.manual_seed(seed_of("step", config.seed, step, 0))
        logits, activations = model.forward_both(batch["images"])
        loss = F.cross_entropy(logits, batch["targets"])
        loss = loss + config.mono_weight * mono_loss(batch["embeddings"], activations)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        if step % config.optimisation.ema_every_steps == 0:
            decay = 0.0 if n_averaged == 0 or step < warmup else config.optimisation.ema_decay
            state = {name: value.clone() for name, value in model.state_dict().items()}
            if average is not None:
                state = {name: decay * average[name] + (1 - decay) * value for name, value in state.items()}
            average, n_averaged = state, n_averaged + 1
    averaged = model_of(config.model, data.class_names)
    averaged.load_state_dict({name: value.to(model.state_dict()[name].dtype) for name, value in average.items()})
    return model.eval(), averaged.eval()


def test_it_trains_as_a_loop_by_hand(data, tmp_path):
    config = a_run(data)
    config = replace(config, optimisation=replace(config.optimisation, warmup_epochs=1, ema_decay=0.4))
    plain, averaged = by_hand(config)
    for expected, settings in ((plain, without_average(config)), (averaged, config)):
        got = trained(settings, tmp_path / f"run {settings.optimisation.ema_decay}")
        for name, value in expected.state_dict().items():
            if "num_batches_tracked" not in name:
                torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-6, msg=name)
    assert not torch.allclose(plain.new_layer.weight, averaged.new_layer.weight, rtol=1e-5, atol=1e-6)


def test_what_is_in_the_folder(data, whole):
    folder, weights = whole
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml",
        "logs",
        "checkpoints",
        "validation.json",
        "model",
    }
    loaded = load_finetuned(folder / "model")
    assert_equal_weights(loaded.state_dict(), weights)
    joined = open_data(data).train
    assert loaded.provenance.store_fingerprint == joined.store.fingerprint
    assert loaded.provenance.training["mono_weight"] == 0.1
    record = read_finetune(folder / "config.yaml")
    assert record.config == a_run(data)
    assert record.train_fingerprint == joined.fingerprint
    lines = logged_by(folder)
    assert [line["step"] for line in lines if line["loss"]] == [str(N_STEPS - 1)]  # a short run logs its last step
    last = [line for line in lines if line["val_top1"]][-1]
    measures = validation_measures(folder)
    assert {f"val_{name}" for name in measures} == {name for name in last if name.startswith("val_")}
    for name, value in measures.items():
        assert float(last[f"val_{name}"]) == pytest.approx(value, rel=1e-6)


def test_what_is_validated_is_the_average_as_it_is_saved(data, whole):
    folder, _ = whole
    model, config = load_finetuned(folder / "model"), a_run(data)
    batches = validation_batches(config, open_data(data), model.preprocessing)
    with torch.no_grad():
        right = sum(int((model(batch["images"]).argmax(1) == batch["targets"]).sum()) for batch in batches)
    measures = validation_measures(folder)
    assert measures["top1"] == right / 12
    assert any(float(torch.tensor(value)) != value for value in measures.values())  # they are not rounded to float32


def test_a_run_is_validated_at_its_end_whatever_the_interval(data, tmp_path):
    config = a_run(data, validate_every_epochs=2, epochs=3)
    trained(config, tmp_path / "run")
    assert sum(bool(line["val_top1"]) for line in logged_by(tmp_path / "run")) == 1
    last = logged_by(tmp_path / "run", version=1)[-1]
    score = validation_measures(tmp_path / "run")["score"]
    assert float(last["val_score"]) == pytest.approx(score, nan_ok=True)  # that very number, rounded to float32


def test_without_held_out_images_there_are_no_figures(data, tmp_path):
    config = a_run(DataConfig(data.images), mono_weight=0.0, epochs=1)
    trained(config, tmp_path)
    assert validation_measures(tmp_path) == {}


def test_evaluation_is_saved_as_the_run_did_it(data, tmp_path):
    config = a_run(data, epochs=1, augmentation=AugmentationConfig(eval_resize=40, interpolation="bicubic"))
    model = fine_tune(config, tmp_path, progress=False)
    assert model.preprocessing["crop_pct"] == pytest.approx(32 / 40.5)
    assert model.preprocessing["interpolation"] == "bicubic"
    same = validation_batches(a_run(data), open_data(data), model.preprocessing)
    batches = validation_batches(config, open_data(data), model_of(config.model, ["a", "b"]).preprocessing)
    assert torch.equal(next(iter(same))["images"], next(iter(batches))["images"])


def test_the_caller_s_random_state_is_left_alone(data, tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    trained(a_run(data, epochs=1), tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_is_on_and_batch_norms_learn(data, tmp_path):
    """timm gives models as for inference."""
    config = without_average(a_run(data, epochs=1))
    model = fine_tune(config, tmp_path, progress=False)
    counts = [layer.num_batches_tracked for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert counts
    assert {int(count) for count in counts} == {3}


def refused(config: FineTuneConfig, folder: Path, **options: Any) -> str:
    with pytest.raises(InputError) as refusal:
        fine_tune(config, folder, progress=False, **options)
    return str(refusal.value)


@pytest.mark.door
def test_what_cannot_be_trained_is_refused_before_anything_is_made(data, tmp_path):
    images = labelled(Path(data.images.removeprefix("imagefolder:")))
    other = store_of(tmp_path / "other", images, ids=[f"other/{name}" for name in images.ids])
    text = refused(a_run(replace(data, embeddings=str(other.folder))), tmp_path / "run")
    assert text.startswith("data.embeddings: got ")
    assert "batch_size: got 64" in refused(a_run(data, batch_size=64), tmp_path / "run")
    assert refused(a_run(data, "test_resnets"), tmp_path / "run").startswith("model.backbone: got ")
    with_lora = a_run(data, model={"lora": LoraConfig(rank=4)})
    assert refused(with_lora, tmp_path / "run").startswith("model.lora: got low-rank updates for ")
    assert not (tmp_path / "run").exists()


@pytest.mark.door
def test_another_run_in_the_folder_is_refused(data, whole, tmp_path):
    folder, _ = whole
    config = a_run(data)
    assert "expected a new folder, or --resume (resume=True)" in refused(config, folder)
    text = refused(replace(config, mono_weight=0.2), folder, resume=True)
    assert text.startswith("mono_weight: got 0.2; expected 0.1 as in ")
    moved = data_in(tmp_path)
    fine_tune(a_run(moved), folder, resume=True, progress=False)  # the same data elsewhere
    shorter = replace(data, validation=None, validation_embeddings=None)
    assert refused(a_run(shorter), folder, resume=True).startswith("validation_fingerprint: got None; expected")


@pytest.mark.door
def test_weights_that_are_no_numbers_are_not_saved(data, tmp_path):
    config = without_average(a_run(DataConfig(data.images), mono_weight=0.0, log_every_steps=1))
    config = replace(config, optimisation=replace(config.optimisation, lr=1e30))
    assert "the training has diverged" in refused(config, tmp_path)
    assert not (tmp_path / "model").exists()


def test_the_average_s_decay():
    optimisation = OptimisationConfig(ema_decay=0.9, ema_every_steps=2)
    config = a_run(DataConfig("cifar10:data"), mono_weight=0.0, optimisation=optimisation, accumulate_batches=3)
    assert decay_of(config) == pytest.approx(0.0)  # 0.1 * 4 * 3 * 2 / 2 is more than 1
    config = replace(config, epochs=12)
    assert decay_of(config) == pytest.approx(1 - 0.1 * 4 * 3 * 2 / 12)
    assert decay_of(replace(config, optimisation=replace(optimisation, ema_adjusted=False))) == pytest.approx(0.9)
