"""MonoLoss the module: the paper's loss by default, and what memory remembers, refuses, saves and scales."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from monoloss.errors import InputError
from monoloss.functional.loss import mono_loss
from monoloss.functional.score import mono_score
from monoloss.losses import MonoLoss
from monoloss.sparse import SparseActivations
from support.embeddings import LAYOUTS, fixed_k, ragged, some_activations, some_batches, some_embeddings
from support.mono_checks import assert_same_scores

G = 0.7


def buffers(criterion: MonoLoss) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in criterion.named_buffers()}


def assert_equal_buffers(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, buffer in one.items():
        assert buffer.dtype == other[name].dtype, name
        assert torch.equal(buffer, other[name]), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_memory_it_is_the_batch_loss(layout):
    embeddings, activations = some_embeddings(), LAYOUTS[layout](some_activations())
    center = embeddings.mean(0)
    for criterion, mean in ((MonoLoss(), None), (MonoLoss(center=center), center)):
        result = criterion.detailed(embeddings, activations)
        expected = mono_loss(embeddings, activations, center=mean)
        assert torch.equal(result.loss, expected)
        assert torch.equal(criterion(embeddings, activations), expected)
        scores = mono_score(embeddings, activations, center=mean)  # by other products than those of the loss
        assert_same_scores(result.scores, scores, activations)
        assert not result.scores.requires_grad


def test_eval_is_the_batch_loss_and_touches_nothing():
    criterion = MonoLoss(memory=G)
    (embeddings, activations), (others, signed) = *some_batches(1), (some_embeddings(50), some_activations(50))
    fresh = MonoLoss(memory=G).eval()
    assert torch.equal(fresh(others, signed), mono_loss(others, signed))
    assert fresh.memory_w.numel() == 0
    criterion(embeddings, activations)
    before = buffers(criterion)
    criterion.eval()
    for z in (signed, ragged(signed)):
        values = (z.values if isinstance(z, SparseActivations) else z).clone().requires_grad_()
        leaf = z.with_values(values) if isinstance(z, SparseActivations) else values
        loss = criterion(others, leaf)
        assert torch.equal(loss, mono_loss(others, leaf))  # which is the same call
        loss.backward()
        assert values.grad.abs().sum() > 0
    assert_equal_buffers(buffers(criterion), before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("way", ["state_dict", "deepcopy", "pickle"])
def test_a_copy_goes_on_bit_for_bit(way, dtype, tmp_path):
    steps = some_batches(6, dtype)
    criterion = MonoLoss(center=some_embeddings(dtype=dtype).mean(0), memory=G)
    for embeddings, activations in steps[:3]:
        criterion(embeddings, activations)
    if way == "state_dict":
        torch.save(criterion.state_dict(), tmp_path / "state.pt")
        other = MonoLoss(center=torch.zeros(8, dtype=dtype), memory=G)
        other(some_embeddings(5, dtype=dtype), some_activations(5, dtype=dtype)[:, :3])  # had another size before
        other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    elif way == "deepcopy":
        other = copy.deepcopy(criterion)
    else:
        torch.save(criterion, tmp_path / "module.pt")
        other = torch.load(tmp_path / "module.pt", weights_only=False)
    assert int(other.step) == 3
    for embeddings, activations in steps[3:]:
        leaves = [activations.clone().requires_grad_() for _ in range(2)]
        losses = [module(embeddings, leaf) for module, leaf in zip((criterion, other), leaves, strict=True)]
        sum(losses).backward()
        assert torch.equal(losses[0], losses[1])
        assert torch.equal(leaves[0].grad, leaves[1].grad)
    assert_equal_buffers(buffers(other), buffers(criterion))


def test_a_module_that_was_never_called_can_be_saved_and_loaded():
    other = MonoLoss(memory=G)
    other(*some_batches(1)[0])
    other.load_state_dict(MonoLoss(memory=G).state_dict())
    assert_equal_buffers(buffers(other), buffers(MonoLoss(memory=G)))


def test_reset_forgets():
    criterion, (embeddings, activations) = MonoLoss(memory=G), some_batches(1)[0]
    first = criterion(embeddings, activations)
    criterion(embeddings, activations)
    criterion.reset()
    assert_equal_buffers(buffers(criterion), buffers(MonoLoss(memory=G)))
    assert torch.equal(criterion(embeddings, activations), first)
    criterion.reset()
    criterion(some_embeddings(9, 5), some_activations(9)[:, 3:5])  # other sizes


@pytest.mark.parametrize("cast", [lambda m: m.half(), lambda m: m.to(torch.bfloat16), lambda m: m.float()])
def test_casting_a_model_keeps_the_sums(cast):
    model = nn.ModuleDict({"layer": nn.Linear(2, 2), "loss": MonoLoss(some_embeddings().mean(0), memory=G)})
    criterion = model["loss"]
    for embeddings, activations in some_batches(2):
        criterion(embeddings, activations)
    before = buffers(criterion)
    cast(model)
    assert model["layer"].weight.dtype != torch.float64
    assert_equal_buffers(buffers(criterion), before)
    embeddings, activations = some_batches(3)[2]
    again = MonoLoss(some_embeddings().mean(0), memory=G)
    again.load_state_dict(before)
    assert torch.equal(criterion(embeddings, activations), again(embeddings, activations))


def test_memory_is_not_on_the_graph():
    criterion = MonoLoss(memory=G)
    for embeddings, activations in some_batches(3):
        criterion(embeddings, activations.clone().requires_grad_())
    assert not any(buffer.requires_grad for buffer in criterion.buffers())


@pytest.mark.parametrize("memory", [0.0, G])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_batches_without_rows_or_activity_are_harmless(layout, memory):
    criterion = MonoLoss(memory=memory)
    nothing, silent = some_activations()[:0], torch.zeros(20, 13, dtype=torch.float64)
    for dense in (nothing, silent):
        leaf = dense.clone().requires_grad_()
        result = criterion.detailed(some_embeddings(dense.shape[0]), LAYOUTS[layout](leaf))
        assert float(result.loss.detach()) == 1.0
        assert torch.isnan(result.scores).all()
        result.loss.backward()
        assert not leaf.grad.any()
    embeddings, activations = some_batches(1)[0]
    assert math.isfinite(float(criterion(embeddings, LAYOUTS[layout](activations))))


def test_extra_repr():
    assert repr(MonoLoss()) == "MonoLoss(memory=0.0, center=None)"
    assert repr(MonoLoss(torch.zeros(3), 0.5)) == "MonoLoss(memory=0.5, center=(3,))"


E6, Z6 = some_embeddings(6), some_activations(6).clamp(min=0)
REFUSED = [
    (lambda: MonoLoss(memory=1.0), "memory: got 1.0; expected a number at least 0.0 and below 1.0"),
    (lambda: MonoLoss(memory=-0.1), "memory: got -0.1; expected a number at least 0.0 and below 1.0"),
    (lambda: MonoLoss(memory=math.nan), "memory: got nan; expected a number at least 0.0 and below 1.0"),
    (lambda: MonoLoss(memory="0.5"), "memory: got '0.5'; expected a number at least 0.0 and below 1.0"),
    (lambda: MonoLoss(torch.tensor([0.0, torch.nan])), "center: got NaN or infinity; expected finite numbers"),
    (lambda: MonoLoss(torch.zeros(1, 2)),
     "center: got shape (1, 2), dtype torch.float32; expected a floating-point tensor of shape (any width,)"),
    (lambda: MonoLoss(torch.zeros(3))(E6, Z6),
     "center: got shape (3,), dtype torch.float32; expected a floating-point tensor of shape (8,)"),
    (lambda: MonoLoss(memory=G)(E6, Z6 - 0.5), "activations: got -0.5 on latent 0; expected values of at least 0"),
    (lambda: MonoLoss(memory=G)(E6, ragged(-Z6)), "activations: got -0.1 on latent 1; expected values of at least 0"),
    (lambda: MonoLoss(memory=G)(E6, Z6[:5]), "activations: got 5 rows; expected as many as embeddings has, 6"),
]  # fmt: skip


@pytest.mark.door
@pytest.mark.parametrize(("call", "text"), REFUSED)
def test_what_does_not_fit_is_refused(call, text):
    with pytest.raises(InputError) as refusal:
        call()
    assert str(refusal.value).startswith(text)


@pytest.mark.door
@pytest.mark.parametrize(
    ("embeddings", "activations", "text"),
    [
        (
            E6,
            Z6[:, :5],
            "activations: got 5 latents of width 8; expected 13 latents of width 8, as in earlier steps",
        ),
        (
            E6[:, :4],
            Z6,
            "activations: got 13 latents of width 4; expected 13 latents of width 8, as in earlier steps",
        ),
        (E6, Z6 - 1, "activations: got -1 on latent 0; expected values of at least 0, because of memory"),
        (E6, Z6.index_fill(1, torch.tensor(2), torch.nan), "activations: got nan (row 0, latent 2)"),
        (E6.index_fill(0, torch.tensor(4), 0.0), fixed_k(Z6), "embeddings: got a row of zeros (row 4)"),
    ],
)
def test_what_is_refused_is_not_remembered(embeddings, activations, text):
    criterion = MonoLoss(memory=G)
    criterion(E6, Z6)
    before = buffers(criterion)
    with pytest.raises(InputError) as refusal:
        criterion(embeddings, activations)
    assert str(refusal.value).startswith(text)
    assert_equal_buffers(buffers(criterion), before)
