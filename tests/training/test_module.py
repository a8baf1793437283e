"""Learning-rate schedules, accumulation, precision and what MonoLoss compares: the same as a loop by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from monoloss.losses import MonoLoss
from monoloss.sae.model import SparseAutoencoder
from monoloss.sae.objectives import objective
from monoloss.training.config import SaeTraining
from monoloss.training.run import train_saes
from support.saes import bits_of, some_config, structured_store
from support.training_runs import BATCH, EPOCHS, SETTINGS, ShuffledBatches, a_run, logged_by

PLAIN = SaeTraining(some_config("topk", 48, 3), lr=1e-3)


def lr_at(settings, step, n_steps):
    """From the description of the options."""
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / settings.warmup_steps
    left = (n_steps - step) / (n_steps - settings.warmup_steps)  # from 1 down to what one step more would make 0
    shape = {"constant": 1.0, "linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left)}
    return settings.lr * shape[settings.lr_schedule]


def plain_loop(store, settings, accumulate=1):
    sae = SparseAutoencoder(store.width, settings.sae, seed=settings.seed)
    mono = MonoLoss(memory=settings.mono_memory)
    adam = torch.optim.Adam(sae.parameters(), lr=settings.lr, eps=settings.adam_eps, fused=True)
    batches = ShuffledBatches(store, BATCH, 42)
    rest_of_an_epoch = len(batches) % accumulate
    n_steps, step = EPOCHS * (len(batches) // accumulate), 0
    for _ in range(EPOCHS):
        epoch = list(batches)
        epoch = epoch[: len(epoch) - rest_of_an_epoch]
        for first in range(0, len(epoch), accumulate):
            adam.zero_grad()
            for batch in epoch[first : first + accumulate]:
                output = sae(batch)
                loss = objective(sae, output).total
                if settings.mono_weight:
                    unit = torch.nn.functional.normalize(batch)
                    scaled = (unit - unit.mean(1, keepdim=True)) / unit.std(1, keepdim=True)
                    compared = scaled if settings.mono_embeddings == "scaled" else unit
                    loss = loss + settings.mono_weight * mono(compared, output.codes)
                sae.count_activity_(output.codes)
                (loss / accumulate).backward()
            for group in adam.param_groups:
                group["lr"] = lr_at(settings, step, n_steps)
            sae.project_decoder_gradient_()
            torch.nn.utils.clip_grad_norm_(sae.parameters(), settings.clip_norm)
            adam.step()
            sae.constrain_()
            step += 1
    return sae


def close(got, expected):
    """Equal but for the roundings that the loop by hand makes otherwise, and far from where the training began."""
    began = SparseAutoencoder(got.d_in, got.config, seed=42)
    for name, parameter in got.named_parameters():
        torch.testing.assert_close(parameter, expected.get_parameter(name), rtol=1e-3, atol=2e-6)
    return float((got.encoder_weight - began.encoder_weight).detach().abs().max()) > 1e-3


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup_steps", [0, 5])
def test_learning_rate_is_as_described(store, tmp_path, schedule, warmup_steps):
    """Each SAE its own, at each step."""
    rates: list[list[float]] = []
    settings = replace(PLAIN, lr_schedule=schedule, warmup_steps=warmup_steps)
    saes = {"one": settings, "two": replace(PLAIN, lr=3e-3)}

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        rates.append([group["lr"] for group in optimizer.param_groups])

    handle = register_optimizer_step_post_hook(note)
    try:
        trained = train_saes(store, a_run(saes), tmp_path, progress=False)
    finally:
        handle.remove()
    assert [rate for rate, _ in rates] == pytest.approx([lr_at(settings, step, 18) for step in range(18)], rel=1e-12)
    assert {rate for _, rate in rates} == {3e-3}
    assert close(trained["one"], plain_loop(store, settings))


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulated_batches_are_one_step(store, tmp_path, accumulate):
    """Of 6 batches an epoch the last two are left out where four make a step."""
    settings = replace(PLAIN, mono_weight=0.1, mono_memory=0.9, lr_schedule="linear")
    config = a_run({"a": settings}, accumulate_batches=accumulate, log_every_steps=1)
    trained = train_saes(store, config, tmp_path, progress=False)["a"]
    assert close(trained, plain_loop(store, settings, accumulate))
    assert [int(line["step"]) for line in logged_by(tmp_path)] == list(range(3 * (6 // accumulate)))


def test_two_half_batches_make_one(store, tmp_path):
    """Where the loss is a mean over rows: TopK without MonoLoss, on batches of the same rows."""
    whole = train_saes(store, a_run({"a": PLAIN}, batch_size=50), tmp_path / "1", progress=False)["a"]
    options = {"batch_size": 25, "accumulate_batches": 2}
    halves = train_saes(store, a_run({"a": PLAIN}, **options), tmp_path / "2", progress=False)["a"]
    assert close(halves, whole)


@pytest.mark.parametrize("embeddings", ["inputs", "scaled"])
def test_monoloss_compares_the_rows_it_is_told_to(store, tmp_path, embeddings):
    settings = replace(PLAIN, mono_weight=0.3, mono_embeddings=embeddings)
    trained = train_saes(store, a_run({"a": settings}), tmp_path, progress=False)["a"]
    assert close(trained, plain_loop(store, settings))
    other = replace(settings, mono_embeddings={"inputs": "scaled", "scaled": "inputs"}[embeddings])
    with pytest.raises(AssertionError, match="not close"):
        close(trained, plain_loop(store, other))


def test_bf16_mixed_trains_as_well_on_weights_in_float32(tmp_path):
    store = structured_store(tmp_path / "store", 1000)
    saes = {name: replace(SETTINGS[name], mono_weight=1e-2) for name in SETTINGS}
    saes["vanilla"] = replace(saes["vanilla"], lr=1e-3)  # else so few rows are active in the end that scores differ
    config = a_run(saes, batch_size=100, epochs=2, log_every_steps=20)
    lines = {}
    for precision in ("32-true", "bf16-mixed"):
        trained = train_saes(store, replace(config, precision=precision), tmp_path / precision, progress=False)
        assert {parameter.dtype for sae in trained.values() for parameter in sae.parameters()} == {torch.float32}
        lines[precision] = logged_by(tmp_path / precision)[-1], {name: bits_of(sae) for name, sae in trained.items()}
    (exact, exact_bits), (mixed, mixed_bits) = lines["32-true"], lines["bf16-mixed"]
    for name, settings in saes.items():
        same = mixed_bits[name]["encoder_weight"] == exact_bits[name]["encoder_weight"]
        assert same == (settings.sae.variant == "jump_relu")
        for figure in ("loss", "reconstruction", "score", "explained_variance"):
            assert float(mixed[f"{name}/{figure}"]) == pytest.approx(float(exact[f"{name}/{figure}"]), abs=0.03), name
