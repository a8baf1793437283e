"""Training: the same as a loop by hand, each SAE as if it were alone."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

import reference
from monoloss.errors import InputError
from monoloss.sae.config import AuxLoss, InputScaling
from monoloss.sae.model import SparseAutoencoder
from monoloss.training import module as training
from monoloss.training.run import train_saes
from sae import reference as sae_reference
from support import bounds
from support.sae_checks import check_decoder_rows_after_training, check_l0_at_inference
from support.saes import VARIANTS, VARIANTS_WITH_AUX, bits_of, some_sae
from support.training_runs import BATCH, LOGGED, N_ROWS, SETTINGS, a_run, by_hand, logged_by, train


@pytest.mark.parametrize("name", SETTINGS)
def test_bit_equal_to_a_loop_by_hand(store, tmp_path, name):
    settings = SETTINGS[name]
    (trained,) = train(store, tmp_path, [name]).values()
    looped, steps = by_hand(store, settings)
    got, expected = bits_of(trained), bits_of(looped)
    threshold = "activation.threshold"
    if settings.sae.variant == "batch_topk":  # calibrated on the same rows in another order, so rounded apart
        apart = float(bounds.of_product(looped.scale(store.embeddings()).scaled, looped.encoder_weight).max())
        torch.testing.assert_close(trained.activation.threshold, looped.activation.threshold, rtol=0, atol=apart)
        assert looped.activation.threshold > 1000 * apart
        del got[threshold], expected[threshold]
    assert got == expected  # the loop has the same shapes and calls the same kernels
    assert steps[-1].loss < steps[0].loss
    if settings.sae.variant in ("jump_relu", "vanilla"):
        assert {step.are_stored for step in steps} == {True, False}  # codes were dense in some steps, stored in others
    if settings.sae.variant != "vanilla":
        assert max(step.n_dead for step in steps) > 0  # aux-k and redrawing took part


def test_figures_are_those_of_the_logged_steps(store, tmp_path):
    train(store, tmp_path, list(SETTINGS))
    lines = logged_by(tmp_path)
    assert [int(line["step"]) + 1 for line in lines] == [4, 8, 12, 16]
    assert [int(line["epoch"]) for line in lines] == [0, 1, 1, 2]
    assert set(lines[0]) == {f"{name}/{figure}" for name in SETTINGS for figure in LOGGED} | {"epoch", "step"}
    for name, settings in SETTINGS.items():
        _, steps = by_hand(store, settings)
        for line in lines:
            step = steps[int(line["step"])]
            got = {figure: float(line[f"{name}/{figure}"]) for figure in LOGGED}
            scores = reference.mono_score_pairwise(step.batch, step.codes)
            assert got["score"] == pytest.approx(np.nanmean(scores), rel=0, abs=bounds.of_score(BATCH))
            assert got["loss"] == pytest.approx(step.loss, rel=1e-6)
            assert got["l0"] == pytest.approx(reference.l0(step.codes), rel=1e-6)
            assert got["dead"] == step.n_dead
            variance = reference.explained_variance(step.target, step.reconstruction)
            assert got["explained_variance"] == pytest.approx(variance, rel=0, abs=1e-5)
            error = reference.nmse if settings.sae.variant == "topk" else reference.mse
            assert got["reconstruction"] == pytest.approx(error(step.target, step.reconstruction), rel=1e-5)
        if settings.mono_weight == 0:
            assert got["loss"] == pytest.approx(got["reconstruction"] + got["aux"] / 32, rel=1e-6)
        if settings.sae.variant == "jump_relu":
            assert got["sparsity"] == pytest.approx((got["l0"] / 2 - 1) ** 2, rel=1e-5, abs=1e-7)
        elif settings.sae.variant == "vanilla":
            assert got["sparsity"] == pytest.approx(sae_reference.l1(step.codes.double().numpy()), rel=1e-5)
        else:
            assert got["sparsity"] == 0.0


def test_figures_come_every_so_many_steps(store, tmp_path):
    train(store, tmp_path / "each", ["tied"], log_every_steps=1, epochs=1)
    assert [int(line["step"]) for line in logged_by(tmp_path / "each")] == list(range(6))
    train(store, tmp_path / "last", ["tied"], log_every_steps=6, epochs=2)
    assert [int(line["step"]) for line in logged_by(tmp_path / "last")] == [5, 11]
    train(store, tmp_path / "short", ["tied"], log_every_steps=500, epochs=1)
    assert [int(line["step"]) for line in logged_by(tmp_path / "short")] == [5]  # a short run logs its last step


def test_another_sae_changes_no_bit_of_the_others(store, tmp_path):
    names = list(SETTINGS)
    alone = {name: bits_of(train(store, tmp_path / str(i), [name])[name]) for i, name in enumerate(names)}
    for order in (names, names[::-1], names[1:]):
        together = train(store, tmp_path / "-".join(order), order)
        assert list(together) == order
        assert {name: bits_of(sae) for name, sae in together.items()} == {name: alone[name] for name in order}


def test_training_twice_gives_the_same_bits_and_leaves_the_generator_of_others_alone(store, tmp_path):
    torch.manual_seed(0)
    first = bits_of(train(store, tmp_path / "1", ["topk"], epochs=1)["topk"])
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert bits_of(train(store, tmp_path / "2", ["topk"], epochs=1)["topk"]) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert bits_of(train(store, tmp_path / "3", ["topk"], epochs=1, seed=7)["topk"]) != first


def test_each_setting_of_the_loss_changes_the_result(store, tmp_path):
    base = SETTINGS["memory.centred+0.9"]
    variants = {
        "base": base,
        "none": replace(base, mono_weight=0.0, mono_memory=0.0, mono_center=False),
        "weight": replace(base, mono_weight=2e-2),
        "memory": replace(base, mono_memory=0.0),
        "center": replace(base, mono_center=False),
        "clip": replace(base, clip_norm=None),
        "seed": replace(base, seed=3),
    }
    saes = train_saes(store, a_run(variants), tmp_path, progress=False)
    assert len({bits_of(sae)["encoder_weight"] for sae in saes.values()}) == len(variants)


def test_each_saes_gradient_is_clipped_by_its_own_norm(store, tmp_path):
    norms: list[list[float]] = []

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        squares = [[float(p.grad.double().square().sum()) for p in group["params"]] for group in optimizer.param_groups]
        norms.append([math.sqrt(sum(group)) for group in squares])

    handle = register_optimizer_step_post_hook(note)
    try:
        train(store, tmp_path, list(SETTINGS))
    finally:
        handle.remove()
    assert len(norms) == 18
    topk, tied, memory, jump, thresholds, vanilla = np.array(norms).T
    assert topk.min() > 0.1  # not clipped
    whole = np.hypot(jump, thresholds)  # two groups with their own learning rates, one SAE
    assert thresholds.max() > 0
    for norm, largest in ((tied, 0.05), (memory, 0.005), (whole, 0.005), (vanilla, 0.005)):
        assert norm.max() <= largest * (1 + 1e-5)
        assert norm.max() >= largest * (1 - 1e-3)  # and no smaller than need be
    np.testing.assert_allclose(tied, [step.grad_norm for step in by_hand(store, SETTINGS["tied"])[1]], rtol=1e-6)


def test_dead_latents_are_drawn_anew_after_every_so_many_steps(store, tmp_path, monkeypatch):
    calls = []

    def note(sae: SparseAutoencoder, optimizer: Any, seed: int) -> None:
        calls.append((seed, int(sae.dead.sum())))
        original(sae, optimizer, seed)
        assert not sae.dead.any()

    original = training._redraw_dead
    monkeypatch.setattr(training, "_redraw_dead", note)
    eager = replace(SETTINGS["topk"], redraw_dead_every_steps=5, seed=1000)
    never = replace(SETTINGS["topk"], redraw_dead_every_steps=None)
    train_saes(store, a_run({"eager": eager, "never": never}), tmp_path, progress=False)
    assert [seed for seed, _ in calls] == [1005, 1010, 1015]
    assert all(n_dead > 0 for _, n_dead in calls)


@pytest.mark.parametrize("variant", VARIANTS)
def test_adam_forgets_latents_that_were_drawn_anew(variant):
    with_aux = {"aux": AuxLoss(k=2, dead_after_samples=10)}
    sae = some_sae(variant, **(with_aux if variant in VARIANTS_WITH_AUX else {"dead_after_samples": 10}))
    adam = torch.optim.Adam(sae.parameters())
    sae(torch.randn(50, sae.d_in, generator=torch.Generator().manual_seed(0))).reconstruction.square().sum().backward()
    adam.step()
    for parameter in sae.parameters():
        adam.state[parameter]["exp_avg"].fill_(3.0)
        adam.state[parameter]["exp_avg_sq"].fill_(3.0)
    sae.samples_since_active[[1, 4]] = 10
    training._redraw_dead(sae, adam, seed=0)
    along = {"encoder_weight": 1, "encoder_bias": 0, "decoder_weight": 0, "activation.threshold": 0}
    for name, parameter in sae.named_parameters():
        expected = torch.full_like(parameter, 3.0)
        if name in along:
            expected.movedim(along[name], 0)[[1, 4]] = 0.0
        for moment in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(adam.state[parameter][moment], expected), (name, moment)
    assert sae.samples_since_active[[1, 4]].tolist() == [0, 0]


def test_saes_come_back_ready_to_encode(store, tmp_path):
    for name, sae in train(store, tmp_path, list(SETTINGS)).items():
        assert not any(part.training for part in sae.modules())
        assert sae.config == SETTINGS[name].sae
        codes = sae.encode(store.embeddings(0, 10))
        assert codes.shape == (10, sae.config.n_latents)
        assert codes.device.type == "cpu"
        assert sae.samples_since_active.max() > 0 or name == "vanilla"


def test_batch_topk_is_calibrated_on_training_rows(store, tmp_path):
    sae = train(store, tmp_path, ["memory.centred+0.9"])["memory.centred+0.9"]
    assert sae.encode(store.embeddings()).values.shape == (3 * N_ROWS,)  # all rows there are, so exactly k a row


def test_mean_l0_on_rows_not_seen_is_k(tmp_path):
    check_l0_at_inference(tmp_path)


def test_decoder_rows_have_length_1_after_training(tmp_path):
    check_decoder_rows_after_training(tmp_path)


def test_is_silent_and_warns_of_nothing(store, tmp_path, capfd):
    """For users too, who do not turn warnings into errors; also where there is just one step, and fewer than a line."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        train(store, tmp_path / "1", list(SETTINGS))
        train(store, tmp_path / "2", ["topk"], epochs=1, batch_size=N_ROWS, log_every_steps=100)
    assert [str(warning.message) for warning in seen] == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.door
def test_error_texts(store, tmp_path):
    topk = SETTINGS["topk"]
    folder = tmp_path / "run"
    raw_centred = replace(topk.sae, inputs=InputScaling(unit_norm=False, center=True))
    for call, text in (
        (
            lambda: train_saes(store, a_run({"a": topk}, batch_size=N_ROWS + 1), folder),
            "batch_size: got 331; expected at most the number of training rows, 330",
        ),
        (
            lambda: train_saes(store, a_run({"a": topk}, accumulate_batches=7), folder),
            ("accumulate_batches: got 7 of 50 rows; expected at most the number of training rows, 330"),
        ),
        (
            lambda: train_saes(store, a_run({"a": replace(topk, warmup_steps=18)}), folder),
            "saes.a.warmup_steps: got 18; expected fewer than the run's 18 steps",
        ),
        (
            lambda: train_saes(store, a_run({"a": topk}, validate_every_steps=3), folder),
            "validate_every_steps: got 3; expected a validation store to make use of it",
        ),
        (
            lambda: train_saes(store, a_run({"a": topk}), folder, validation="folder"),
            "validation: got a str; expected a FeatureStore or None",
        ),
        (
            lambda: train_saes(store, a_run({"a": replace(topk, mono_weight=0.0, mono_memory=0.5)}), folder),
            "saes.a.mono_memory: got 0.5; expected mono_weight above 0 to make use of it",
        ),
        (
            lambda: train_saes(store, a_run({"a": replace(topk, sae=raw_centred)}), folder),
            (
                "saes.a.sae.inputs.center: got True without unit_norm; "
                "expected unit_norm too: the store's mean is that of unit rows"
            ),
        ),
        (
            lambda: train_saes("folder", a_run({"a": topk}), folder),
            "store: got a str; expected a FeatureStore; FeatureStore(folder) opens one",
        ),
        (lambda: train_saes(store, {"a": topk}, folder), "config: got a dict; expected a TrainingConfig"),
        (
            lambda: train_saes(store, a_run({"a": replace(topk, mono_weight=0.0, mono_center=True)}), folder),
            "saes.a.mono_center: got True; expected mono_weight above 0 to make use of it",
        ),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value) == text
    assert not folder.exists()
    file = tmp_path / "file"
    file.write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="got a file; expected a path for a folder"):
        train_saes(store, a_run({"a": topk}), file)
