"""The losses and measures of the LightningModule of fine-tuning, against their definitions."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import reference
from monoloss.errors import InputError
from monoloss.finetune.config import AugmentationConfig, OptimisationConfig
from monoloss.finetune.model.model import FineTuneModel
from monoloss.finetune.module import FineTuneModule
from monoloss.finetune.optimiser import SgdRecipe
from monoloss.functional.loss import mono_loss
from monoloss.functional.purity import class_purity
from monoloss.metrics import ClassPurity, MonoScore
from support import bounds
from support.fake_cuda import fake_cuda, waits_of
from support.finetune_models import CLASSES, LORA, small_model, stirred
from support.finetune_modules import D, N, batch, fit, module_for, settings, validate


def smoothed_cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> float:
    """In NumPy, from the definition."""
    values = logits.detach().double().numpy()
    values -= values.max(1, keepdims=True)
    log_p = values - np.log(np.exp(values).sum(1, keepdims=True))
    wanted = np.eye(values.shape[1])[targets.numpy()] if targets.ndim == 1 else targets.double().numpy()
    wanted = wanted * (1.0 - smoothing) + smoothing / values.shape[1]
    return float(-(wanted * log_p).sum(1).mean())


@pytest.mark.parametrize("mixed", [False, True])
def test_the_loss_is_cross_entropy_plus_weighted_mono_loss(mixed):
    optimisation = OptimisationConfig(label_smoothing=0.1, schedule="constant", lr=0.05)
    config, data = settings(optimisation=optimisation, mono_weight=0.7), batch(mixed=mixed)
    untrained = small_model().train()
    logits, activations = untrained.forward_both(data["images"])
    task = smoothed_cross_entropy(logits, data["targets"], 0.1)
    mono = reference.mono_loss(data["embeddings"], activations.detach())
    (logged,) = fit(module_for(config), [data])
    assert logged["task_loss"] == pytest.approx(task, rel=1e-5)
    assert logged["mono_loss"] == pytest.approx(mono, rel=1e-4)
    assert logged["loss"] == pytest.approx(task + 0.7 * mono, rel=1e-4)
    assert ("top1" in logged) == (not mixed)
    others = reference.mono_loss(data["embeddings"].roll(1, 0), activations.detach())
    assert abs(others - mono) > 1e-3  # embeddings of other rows would show


def test_without_weight_no_embeddings_are_needed():
    module = module_for(settings(), width=None, validation_embeddings=False)
    data = batch()
    del data["embeddings"]
    (logged,) = fit(module, [data])
    assert "mono_loss" not in logged
    assert logged["loss"] == logged["task_loss"]


def test_training_lowers_mono_loss_and_moves_the_backbone():
    data, start = batch(), small_model().state_dict()
    module = module_for(settings(mono_weight=2.0, epochs=6))
    steps = fit(module, [data])
    assert steps[-1]["mono_loss"] < steps[0]["mono_loss"]
    moved = [name for name, value in module.model.named_parameters() if not torch.equal(value, start[name])]
    assert len(moved) == len([*module.model.parameters()])


def test_with_lora_the_backbone_stays():
    model = small_model("test_vit", lora=LORA)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    fit(module_for(settings("test_vit", mono_weight=0.1), model), [batch()])
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, start[name])}
    assert all("lora_" in name or not name.startswith("backbone.") for name in moved)
    assert any("lora_B" in name for name in moved)


def loss_by_hand(model: FineTuneModel, data: dict[str, Tensor], weight: float) -> Tensor:
    logits, activations = model.forward_both(data["images"])
    return F.cross_entropy(logits, data["targets"]) + weight * mono_loss(data["embeddings"], activations)


def test_accumulation_is_the_mean_of_the_batches():
    parts = [batch(seed=1), batch(seed=2)]
    optimisation = OptimisationConfig(lr=0.05, schedule="constant", weight_decay=0.0)
    config = settings("test_vit", optimisation, mono_weight=0.5, accumulate_batches=2)
    module, by_hand = module_for(config), small_model("test_vit").train()
    fit(module, parts)
    loss = sum(loss_by_hand(by_hand, part, 0.5) for part in parts) / 2
    loss.backward()
    with torch.no_grad():
        for parameter in by_hand.parameters():
            parameter.sub_(0.05 * parameter.grad)
    for one, other in zip(module.model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("split", [(12,), (5, 5, 2)])
def test_validation_counts_every_row_once(split):
    whole, model = batch(seed=4), stirred(small_model()).eval()
    starts = [sum(split[:i]) for i in range(len(split))]
    parts = [{k: v[i : i + n] for k, v in whole.items()} for i, n in zip(starts, split, strict=True)]
    with torch.inference_mode():  # as in the validation, and on its batches: to the bit
        logits, activations = map(torch.cat, zip(*(model.forward_both(part["images"]) for part in parts), strict=True))
    module = module_for(settings(mono_weight=0.5), model)
    measures = validate(module, parts)
    targets = whole["targets"]
    assert measures["val_top1"] == pytest.approx(float((logits.argmax(1) == targets).float().mean()))
    assert measures["val_top5"] == 1.0  # there are three classes
    loss_error = float(bounds.of_sum(len(CLASSES), 2 * logits.abs().max(), torch.float32))
    assert measures["val_loss"] == pytest.approx(smoothed_cross_entropy(logits, targets, 0.0), rel=1e-5, abs=loss_error)
    scores = reference.mono_score_pairwise(whole["embeddings"], activations)
    assert measures["val_score"] == pytest.approx(np.nanmean(scores), rel=0, abs=bounds.of_score(N))
    assert measures["val_score_zero_filled"] == pytest.approx(
        np.nan_to_num(scores).mean(), rel=0, abs=bounds.of_score(N)
    )
    purity = reference.class_purity(activations, targets, len(CLASSES))
    assert measures["val_purity_binary"] == pytest.approx(purity["mean_binary"], rel=1e-5)
    assert measures["val_purity_weighted"] == pytest.approx(purity["mean_weighted"], rel=1e-5)
    assert measures["val_alive"] == float((activations > 0).any(0).sum())
    exact = float(class_purity(activations, targets, len(CLASSES)).mean_weighted)
    assert module.measures["purity_weighted"] == pytest.approx(exact, rel=1e-12)  # float32 holds 7 digits
    assert measures == {f"val_{name}": pytest.approx(value, rel=1e-6) for name, value in module.measures.items()}


def test_top_5_of_many_classes():
    model = small_model()
    model.classifier = torch.nn.Linear(model.width, 9)
    model.class_names = tuple("abcdefghi")
    whole = batch(n=9)
    whole["targets"] = torch.arange(9)
    with torch.no_grad():
        ranks = model.eval()(whole["images"]).argsort(1, descending=True)
    expected = np.mean([row in ranks[row, :5].tolist() for row in range(9)])
    assert validate(module_for(settings(), model), [whole])["val_top5"] == pytest.approx(expected)


def test_validation_without_embeddings_has_no_score():
    module = module_for(settings(mono_weight=0.5), validation_embeddings=False)
    data = batch()
    del data["embeddings"]
    measures = validate(module, [data])
    assert "val_score" not in measures
    assert "val_purity_binary" in measures


def test_validation_twice_gives_the_same_and_changes_no_state():
    module = module_for(settings(mono_weight=0.5, mono_memory=0.5))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    first = validate(module, [batch()])
    assert validate(module, [batch()]) == first
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")  # torch's own deepcopy
def test_a_batch_of_validation_neither_waits_for_a_gpu_nor_copies_from_it():
    with fake_cuda(), torch.no_grad():
        output = SimpleNamespace(logits=torch.zeros(N, 7), activations=torch.ones(N, 16))
        module = SimpleNamespace(
            model=SimpleNamespace(forward_both=lambda _: output),
            purity=ClassPurity(16, 7).to("cuda"),
            score=MonoScore(D, 16).to("cuda"),
            _sums=torch.zeros(4, dtype=torch.float64),
        )
        images = {
            "images": torch.zeros(1),
            "targets": torch.zeros(N, dtype=torch.int64),
            "embeddings": torch.ones(N, D),
        }
        for _ in range(2):
            assert waits_of(lambda: FineTuneModule.validation_step(module, images, 0)) == []


def test_the_state_is_model_and_memory_alone():
    names = {name.partition(".")[0] for name in module_for(settings(mono_weight=0.5, mono_memory=0.5)).state_dict()}
    assert names == {"model", "mono_loss"}


def test_memory_from_the_start_is_memory_from_the_first_batch_on():
    steps = [batch(seed=seed) for seed in range(3)]
    config = settings(mono_weight=0.5, mono_memory=0.9)
    sized, empty = module_for(config), module_for(config)
    empty.mono_loss.reset()
    for module in (sized, empty):
        fit(module, steps)
    for name, value in sized.state_dict().items():
        assert torch.equal(value, empty.state_dict()[name]), name
    average = AveragedModel(module_for(config), multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    average.update_parameters(sized)
    average.update_parameters(sized)  # fails where a buffer has another size or type


def test_center_is_taken_off_the_embeddings():
    center = torch.full((D,), 0.4)
    data = batch()
    with torch.no_grad():
        activations = small_model().train().layer(data["images"])
    (logged,) = fit(module_for(settings(mono_weight=0.5, mono_center=True), center=center), [data])
    assert logged["mono_loss"] == pytest.approx(reference.mono_loss(data["embeddings"], activations, center), rel=1e-4)


def test_half_precision_reaches_the_model_alone():
    module, seen = module_for(settings("test_vit", mono_weight=0.5, precision="bf16-mixed")), []
    module.mono_loss.register_forward_pre_hook(lambda _, rows: seen.extend(rows))
    module.model.new_layer.register_forward_hook(lambda _layer, _rows, out: seen.append(out))
    (logged,) = fit(module, [batch()])
    assert [value.dtype for value in seen] == [torch.bfloat16, torch.float32, torch.float32]
    assert all(parameter.dtype == torch.float32 for parameter in module.parameters())
    assert np.isfinite(logged["loss"])


def test_figures_are_logged_every_so_many_steps():
    parts = [batch(seed=seed) for seed in range(4)]
    steps = fit(module_for(settings(log_every_steps=2), steps_per_epoch=4), parts)
    assert ["loss" in step for step in steps] == [False, True, True, True]  # what was logged last stays
    assert steps[1] == steps[2] != steps[3]


@pytest.mark.door
def test_what_does_not_fit_together():
    config = settings("test_vit2", augmentation=AugmentationConfig(train_crop=40))
    text = r"augmentation.train_crop: got 40 \(.*\); expected a size that the backbone takes"
    with pytest.raises(InputError, match=text):
        module_for(config)
    with pytest.raises(InputError, match="model: got a Linear"):
        FineTuneModule(torch.nn.Linear(1, 1), SgdRecipe(lambda _: 1.0))
