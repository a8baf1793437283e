"""The losses and measures of a fine-tuning run against what the definitions say, and its optimiser."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import reference
from monoloss.errors import InputError
from monoloss.finetune.config import AugmentationConfig, DataConfig, FineTuneConfig, OptimisationConfig
from monoloss.finetune.model.model import FineTuneModel
from monoloss.finetune.module import FineTuneModule
from monoloss.finetune.optimiser import SgdRecipe, learning_rate_factor, make_sgd
from monoloss.finetune.run import module_of
from monoloss.functional.loss import mono_loss
from monoloss.functional.purity import class_purity
from monoloss.runs.trainer import quiet_lightning
from support import bounds
from support.finetune_models import CLASSES, LORA, pictures, small_config, small_model, stirred

N, D = 12, 5
DATA = DataConfig("imagefolder:images", embeddings="store")


def settings(backbone: str = "test_resnet", optimisation: OptimisationConfig | None = None, **options: Any):
    options = {"epochs": 1, "batch_size": N, "log_every_steps": 1, **options}
    optimisation = optimisation or OptimisationConfig(lr=0.05, schedule="constant")
    return FineTuneConfig(small_config(backbone), DATA, optimisation=optimisation, **options)


def run_of(config: FineTuneConfig, model: FineTuneModel | None = None, **options: Any) -> FineTuneModule:
    options = {"steps_per_epoch": 1, "width": D, "validation_embeddings": True, **options}
    run = module_of(config, model or small_model(config.model.backbone), **options)
    run.config = config  # for `fit`
    return run


def batch(n: int = N, seed: int = 0, *, mixed: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(n) % len(CLASSES)
    if mixed:
        targets = torch.rand(n, len(CLASSES), generator=generator)
        targets /= targets.sum(1, keepdim=True)
    embeddings = torch.randn(n, D, generator=generator) + 0.5
    return {"images": pictures(n, seed), "targets": targets, "embeddings": embeddings}


class Batches:
    """What Lightning iterates over; a list it would take for several loaders."""

    def __init__(self, batches: Sequence[dict[str, Tensor]]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return iter(self._batches)


class Recorder(Callback):
    """Keeps what is logged in each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, *args: object) -> None:
        self.steps.append({name: float(value) for name, value in trainer.logged_metrics.items()})


def fit(run: FineTuneModule, batches: Sequence[dict[str, Tensor]], **options: Any) -> list[dict[str, float]]:
    """Train on these batches; what was logged in each step."""
    recorder = Recorder()
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_checkpointing", "enable_model_summary"), False)
    with quiet_lightning():
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=run.config.epochs,
            accumulate_grad_batches=run.config.accumulate_batches,
            precision=run.config.precision,
            log_every_n_steps=1,
            callbacks=[recorder],
            **quiet,
            **options,
        )
        trainer.fit(run.train(), Batches(batches))
    return recorder.steps


def validate(run: FineTuneModule, batches: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_checkpointing", "enable_model_summary"), False)
    with quiet_lightning():
        trainer = Trainer(accelerator="cpu", **quiet)
        (figures,) = trainer.validate(run, Batches(batches), verbose=False)
    return figures


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
    (logged,) = fit(run_of(config), [data])
    assert logged["task_loss"] == pytest.approx(task, rel=1e-5)
    assert logged["mono_loss"] == pytest.approx(mono, rel=1e-4)
    assert logged["loss"] == pytest.approx(task + 0.7 * mono, rel=1e-4)
    assert ("top1" in logged) == (not mixed)
    others = reference.mono_loss(data["embeddings"].roll(1, 0), activations.detach())
    assert abs(others - mono) > 1e-3  # embeddings of other rows would show


def test_without_weight_no_embeddings_are_needed():
    run = run_of(settings(), width=None, validation_embeddings=False)
    data = batch()
    del data["embeddings"]
    (logged,) = fit(run, [data])
    assert "mono_loss" not in logged
    assert logged["loss"] == logged["task_loss"]


def test_training_lowers_mono_loss_and_moves_the_backbone():
    data, start = batch(), small_model().state_dict()
    run = run_of(settings(mono_weight=2.0, epochs=6))
    steps = fit(run, [data])
    assert steps[-1]["mono_loss"] < steps[0]["mono_loss"]
    moved = [name for name, value in run.model.named_parameters() if not torch.equal(value, start[name])]
    assert len(moved) == len([*run.model.parameters()])


def test_with_lora_the_backbone_stays():
    model = small_model("test_vit", lora=LORA)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    fit(run_of(settings("test_vit", mono_weight=0.1), model), [batch()])
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
    run, by_hand = run_of(config), small_model("test_vit").train()
    fit(run, parts)
    loss = sum(loss_by_hand(by_hand, part, 0.5) for part in parts) / 2
    loss.backward()
    with torch.no_grad():
        for parameter in by_hand.parameters():
            parameter.sub_(0.05 * parameter.grad)
    for one, other in zip(run.model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("split", [(12,), (5, 5, 2)])
def test_validation_counts_every_row_once(split):
    whole, model = batch(seed=4), stirred(small_model()).eval()
    starts = [sum(split[:i]) for i in range(len(split))]
    parts = [{k: v[i : i + n] for k, v in whole.items()} for i, n in zip(starts, split, strict=True)]
    with torch.inference_mode():  # as in the validation, and on its batches: to the bit
        logits, activations = map(torch.cat, zip(*(model.forward_both(part["images"]) for part in parts), strict=True))
    run = run_of(settings(mono_weight=0.5), model)
    figures = validate(run, parts)
    targets = whole["targets"]
    assert figures["val_top1"] == pytest.approx(float((logits.argmax(1) == targets).float().mean()))
    assert figures["val_top5"] == 1.0  # there are three classes
    loss_error = float(bounds.of_sum(len(CLASSES), 2 * logits.abs().max(), torch.float32))
    assert figures["val_loss"] == pytest.approx(smoothed_cross_entropy(logits, targets, 0.0), rel=1e-5, abs=loss_error)
    scores = reference.mono_score_pairwise(whole["embeddings"], activations)
    assert figures["val_score"] == pytest.approx(np.nanmean(scores), rel=0, abs=bounds.of_score(N))
    assert figures["val_score_zero_filled"] == pytest.approx(
        np.nan_to_num(scores).mean(), rel=0, abs=bounds.of_score(N)
    )
    purity = reference.class_purity(activations, targets, len(CLASSES))
    assert figures["val_purity_binary"] == pytest.approx(purity["mean_binary"], rel=1e-5)
    assert figures["val_purity_weighted"] == pytest.approx(purity["mean_weighted"], rel=1e-5)
    assert figures["val_alive"] == float((activations > 0).any(0).sum())
    exact = float(class_purity(activations, targets, len(CLASSES)).mean_weighted)
    assert run.measures["purity_weighted"] == pytest.approx(exact, rel=1e-12)  # float32 holds 7 digits
    assert figures == {f"val_{name}": pytest.approx(value, rel=1e-6) for name, value in run.measures.items()}


def test_top_5_of_many_classes():
    model = small_model()
    model.classifier = torch.nn.Linear(model.width, 9)
    model.class_names = tuple("abcdefghi")
    whole = batch(n=9)
    whole["targets"] = torch.arange(9)
    with torch.no_grad():
        ranks = model.eval()(whole["images"]).argsort(1, descending=True)
    expected = np.mean([row in ranks[row, :5].tolist() for row in range(9)])
    assert validate(run_of(settings(), model), [whole])["val_top5"] == pytest.approx(expected)


def test_validation_without_embeddings_has_no_score():
    run = run_of(settings(mono_weight=0.5), validation_embeddings=False)
    data = batch()
    del data["embeddings"]
    figures = validate(run, [data])
    assert "val_score" not in figures
    assert "val_purity_binary" in figures


def test_validation_twice_gives_the_same_and_changes_no_state():
    run = run_of(settings(mono_weight=0.5, mono_memory=0.5))
    before = {name: value.clone() for name, value in run.state_dict().items()}
    first = validate(run, [batch()])
    assert validate(run, [batch()]) == first
    assert all(torch.equal(value, before[name]) for name, value in run.state_dict().items())


def test_the_state_is_model_and_memory_alone():
    names = {name.partition(".")[0] for name in run_of(settings(mono_weight=0.5, mono_memory=0.5)).state_dict()}
    assert names == {"model", "mono_loss"}


def test_memory_from_the_start_is_memory_from_the_first_batch_on():
    steps = [batch(seed=seed) for seed in range(3)]
    config = settings(mono_weight=0.5, mono_memory=0.9)
    sized, empty = run_of(config), run_of(config)
    empty.mono_loss.reset()
    for run in (sized, empty):
        fit(run, steps)
    for name, value in sized.state_dict().items():
        assert torch.equal(value, empty.state_dict()[name]), name
    average = AveragedModel(run_of(config), multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    average.update_parameters(sized)
    average.update_parameters(sized)  # fails where a buffer has another size or type


def test_center_is_taken_off_the_embeddings():
    center = torch.full((D,), 0.4)
    data = batch()
    with torch.no_grad():
        activations = small_model().train().layer(data["images"])
    (logged,) = fit(run_of(settings(mono_weight=0.5, mono_center=True), center=center), [data])
    assert logged["mono_loss"] == pytest.approx(reference.mono_loss(data["embeddings"], activations, center), rel=1e-4)


def test_half_precision_reaches_the_model_alone():
    run, seen = run_of(settings("test_vit", mono_weight=0.5, precision="bf16-mixed")), []
    run.mono_loss.register_forward_pre_hook(lambda _, rows: seen.extend(rows))
    run.model.new_layer.register_forward_hook(lambda _layer, _rows, out: seen.append(out))
    (logged,) = fit(run, [batch()])
    assert [value.dtype for value in seen] == [torch.bfloat16, torch.float32, torch.float32]
    assert all(parameter.dtype == torch.float32 for parameter in run.parameters())
    assert np.isfinite(logged["loss"])


def test_norms_biases_and_positions_do_not_decay():
    model = small_model("test_vit")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    free, decayed = make_sgd(model, SgdRecipe(lambda _: 1.0, weight_decay=0.1)).param_groups
    assert (free["weight_decay"], decayed["weight_decay"]) == (0.0, 0.1)
    kept = {names[id(parameter)] for parameter in free["params"]}
    assert {"backbone.pos_embed", "backbone.cls_token", "backbone.norm.weight", "new_layer.bias"} <= kept
    matrices = {names[id(parameter)] for parameter in decayed["params"]}
    assert {"new_layer.weight", "classifier.weight", "backbone.patch_embed.proj.weight"} <= matrices
    assert kept | matrices == set(names.values())


def test_the_gradient_is_clipped_as_a_whole():
    optimisation = OptimisationConfig(lr=1.0, clip_norm=0.01, schedule="constant", weight_decay=0.0)
    run = run_of(settings(optimisation=optimisation))
    start = {name: value.clone() for name, value in run.model.named_parameters()}
    fit(run, [batch()])
    change = torch.cat([(value - start[name]).flatten() for name, value in run.model.named_parameters()])
    assert float(change.norm().detach()) == pytest.approx(0.01, rel=1e-3)


def test_learning_rates_of_a_run():
    optimisation = OptimisationConfig(lr=0.1, schedule="cosine", warmup_epochs=1, warmup_from=0.01)
    steps = fit(run_of(settings(optimisation=optimisation, epochs=3), steps_per_epoch=2), [batch(), batch(seed=1)])
    assert [step["lr"] for step in steps] == pytest.approx(
        [0.001, 0.0505, 0.1, 0.1 * (1 + 0.5**0.5) / 2, 0.05, 0.1 * (1 - 0.5**0.5) / 2], rel=1e-5
    )


def test_a_step_schedule_counts_from_the_beginning():
    factor = learning_rate_factor(10, 90, schedule="step", step_epochs=30, warmup_epochs=5)
    epochs = [factor(10 * epoch) for epoch in (0, 5, 29, 30, 59, 60, 89)]
    assert epochs == pytest.approx([0.01, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01])
    assert learning_rate_factor(10, 3, schedule="constant")(29) == 1.0


def test_figures_are_logged_every_so_many_steps():
    parts = [batch(seed=seed) for seed in range(4)]
    steps = fit(run_of(settings(log_every_steps=2), steps_per_epoch=4), parts)
    assert ["loss" in step for step in steps] == [False, True, True, True]  # what was logged last stays
    assert steps[1] == steps[2] != steps[3]


@pytest.mark.door
def test_divergence_is_one_sentence():
    run = run_of(settings(optimisation=OptimisationConfig(lr=1e30, schedule="constant"), epochs=3))
    with pytest.raises(
        InputError, match=r"optimisation.lr: got a loss of (nan|inf) in step [23]; expected a smaller lr"
    ):
        fit(run, [batch()])
    run.model.classifier.bias.data.fill_(torch.nan)
    with pytest.raises(InputError, match=r"optimisation.lr: got weights that are no finite numbers after step"):
        run.check_finite()


@pytest.mark.door
def test_divergence_that_mono_loss_meets_first_is_the_same_sentence():
    optimisation = OptimisationConfig(lr=1e30, schedule="constant")
    run = run_of(settings(optimisation=optimisation, mono_weight=0.1, epochs=3, log_every_steps=3))
    text = (
        r"optimisation.lr: got activations that are no finite numbers in step [23]; expected .* training has diverged"
    )
    with pytest.raises(InputError, match=text):
        fit(run, [batch()])
    data = batch()
    data["embeddings"][0] = 0.0
    with pytest.raises(InputError, match="embeddings: got a row of zeros"):  # a fault of the data stays one
        fit(run_of(settings(mono_weight=0.1)), [data])


@pytest.mark.door
@pytest.mark.parametrize(
    ("part", "got"),
    [("new_layer", "activations that are no finite numbers"), ("classifier", "a loss of nan")],
)
def test_divergence_that_the_validation_meets_first_is_the_same_sentence(part, got):
    run = run_of(settings(mono_weight=0.1))
    getattr(run.model, part).bias.data.fill_(torch.nan)
    with pytest.raises(InputError, match=f"optimisation.lr: got {got} in the validation; expected a smaller lr"):
        validate(run, [batch()])


@pytest.mark.door
def test_statistics_of_a_norm_that_have_diverged_are_not_saved():
    run = run_of(settings())
    norm = next(layer for layer in run.model.modules() if isinstance(layer, torch.nn.BatchNorm2d))
    norm.running_var.fill_(torch.inf)
    with pytest.raises(InputError, match=r"optimisation.lr: got weights that are no finite numbers after step"):
        run.check_finite()


@pytest.mark.door
def test_what_does_not_fit_together():
    config = settings("test_vit2", augmentation=AugmentationConfig(train_crop=40))
    text = r"augmentation.train_crop: got 40 \(.*\); expected a size that the backbone takes"
    with pytest.raises(InputError, match=text):
        run_of(config)
    with pytest.raises(InputError, match="model: got a Linear"):
        FineTuneModule(torch.nn.Linear(1, 1), SgdRecipe(lambda _: 1.0))
