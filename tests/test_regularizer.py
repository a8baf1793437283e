"""ActivationRegularizer: the loss of what the layer gave, its pooling, its life and its errors.

How it works with autocast, compilation, several processes, checkpoints, validation and copies is tested in
``behaviour/test_regularized_training.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from monoloss.errors import InputError
from monoloss.functional.loss import mono_loss
from monoloss.losses import MonoLoss
from monoloss.regularizer import ActivationRegularizer
from support.regularized_nets import N, Net, assert_same, embeddings, expected, images, n_hooks, step


@pytest.mark.parametrize("layer", ["stem", "stem.0", "tokens", "rows"])
def test_it_is_mono_loss_of_the_layer(layer):
    net = Net()
    with ActivationRegularizer(net, layer) as regularizer:
        got = step(net, net, regularizer)
    assert_same(got, expected(layer))
    assert any(gradient.any() for gradient in got[1])
    if layer == "stem":  # a wrong variant: another layer's activations
        assert not torch.allclose(got[0], expected("rows")[0])


def test_signed_activations_count_from_their_minimum():
    net = Net()
    with ActivationRegularizer(net, "rows") as regularizer:
        net(images())
        rows = regularizer.activations()
        assert (rows < 0).any()
        torch.testing.assert_close(regularizer(embeddings()), mono_loss(embeddings(), rows - rows.amin(0)))
    with ActivationRegularizer(net, "rows", MonoLoss(memory=0.5), pool=lambda rows: rows.relu()) as regularizer:
        net(images())
        expected = MonoLoss(memory=0.5)(embeddings(), rows.relu())
        torch.testing.assert_close(regularizer(embeddings()), expected)


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        ("mean", lambda tokens: tokens.mean(1)),
        ("first", lambda tokens: tokens[:, 0]),
        (lambda tokens: tokens.amax(1), lambda tokens: tokens.amax(1)),
    ],
)
def test_what_is_made_of_tokens(pool, expected):
    net = Net()
    with ActivationRegularizer(net, "tokens", pool=pool) as regularizer:
        net(images())
        tokens = net.tokens(net.stem(images()).flatten(2).mT)
        regularizer.clear()
        net(images())
        assert torch.equal(regularizer.activations(), expected(tokens))


def test_an_output_that_the_model_changes_in_place_is_kept_as_it_was():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    rows = torch.randn(N, 3)
    with ActivationRegularizer(model, "0") as regularizer:
        model(rows)
        kept = regularizer.activations()
        assert torch.equal(kept, model[0](rows))
        assert (kept < 0).any()


def test_maps_of_half_precision_are_averaged_in_float32():
    net = Net().bfloat16()
    with ActivationRegularizer(net, "stem") as regularizer:
        net(images().bfloat16())
        maps = net.stem(images().bfloat16())
        regularizer.clear()
        net(images().bfloat16())
        assert regularizer.activations().dtype == torch.float32
        assert torch.equal(regularizer.activations(), maps.float().mean((2, 3)))


def test_a_pass_that_is_forgotten():
    net = Net()
    with ActivationRegularizer(net, "stem") as regularizer:
        net(images(3))
        regularizer.clear()
        assert_same(step(net, net, regularizer), expected())


def test_nothing_is_left_behind():
    net = Net()
    regularizer = ActivationRegularizer(net, "stem")
    assert n_hooks(net) == 1
    net(images())
    regularizer.close()
    regularizer.close()
    assert n_hooks(net) == 0
    assert regularizer._with_gradient is None
    with pytest.raises(ZeroDivisionError), ActivationRegularizer(net, "stem"):
        raise ZeroDivisionError
    assert n_hooks(net) == 0
    with ActivationRegularizer(net, "stem"), ActivationRegularizer(net, "rows"):
        assert n_hooks(net) == 2
    assert n_hooks(net) == 0


def test_any_loss_of_the_two():
    net = Net()
    with ActivationRegularizer(net, "rows", lambda e, z: e.sum() + z.sum()) as regularizer:
        net(images())
        rows = regularizer.activations()
        torch.testing.assert_close(regularizer(embeddings()), embeddings().sum() + rows.sum())


NAMES = "a name of model.named_modules(), such as "


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as refusal:
        call()
    return str(refusal.value)


@pytest.mark.door
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((Net(), "stem.1x"), "layer: got 'stem.1x'; expected " + NAMES + "'stem.1', 'stem.0'"),
        ((Net(), "token"), "layer: got 'token'; expected " + NAMES + "'tokens'"),
        ((Net(), "q"), "layer: got 'q'; expected " + NAMES + "'stem', 'tokens', 'rows', 'head'"),
        ((Net(), ""), "layer: got ''; expected a name of"),
        ((Net(), "recompute"), "layer: got 'recompute'; expected a name of"),
        ((nn.ReLU(), "a"), "layer: got 'a'; expected a model that has layers"),
        ((Net(), 3), "layer: got a int; expected the name of a layer"),
        (("net", "stem"), "model: got a str; expected a torch.nn.Module"),
        ((Net(), "stem", 0.1), "loss: got a float; expected a function of embeddings and activations, or None"),
    ],
)  # fmt: skip
def test_what_cannot_be_hooked_is_refused(arguments, text):
    assert refused(lambda: ActivationRegularizer(*arguments)).startswith(text)
    if isinstance(arguments[0], nn.Module):
        assert n_hooks(arguments[0]) == 0


@pytest.mark.door
def test_calls_that_fit_no_pass_are_refused():
    net = Net()
    regularizer = ActivationRegularizer(net, "stem")
    none = "model: got no forward pass since the last call; expected one that runs the layer 'stem'"
    assert refused(lambda: regularizer(embeddings())).startswith(none)
    net(images())
    text = "embeddings: got 11 rows; expected as many as the forward pass had in 'stem', 12"
    assert refused(lambda: regularizer(embeddings(11))) == text
    regularizer(embeddings())  # the pass is still there
    assert refused(lambda: regularizer(embeddings())).startswith(none)
    net(images())
    net(images())
    assert refused(lambda: regularizer(embeddings())).startswith(
        "layer 'stem': got 2 runs since the last call; expected one; call clear() after"
    )
    regularizer.close()
    assert refused(lambda: regularizer(embeddings())) == (
        "regularizer: got a call after close(); expected a new ActivationRegularizer"
    )


@pytest.mark.door
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")  # torch's own, of what is refused here
@pytest.mark.parametrize("why", ["frozen", "no_grad", "recomputed without gradients"])
def test_activations_that_cannot_learn_are_refused(why):
    net = Net(recompute=True if why == "recomputed without gradients" else None)
    with ActivationRegularizer(net, "stem") as regularizer:
        if why == "frozen":
            net.stem.requires_grad_(False)
        with torch.set_grad_enabled(why != "no_grad"):
            net(images())
        text = refused(lambda: regularizer(embeddings()))
        assert text.startswith(
            "layer 'stem': got activations without a gradient; expected activations that require one"
        )


@pytest.mark.door
@pytest.mark.parametrize(
    ("layer", "pool", "text"),
    [
        ("stem", "first", "the output of 'stem': got shape (12, 6, 3, 4) for pool 'first'; expected tokens (n, t"),
        ("tokens", lambda tokens: tokens, "the output of 'tokens' after pool: got shape (12, 12, 7); expected a float"),
        ("rows", lambda rows: rows is None, "the output of 'rows' after pool: got bool; expected a float"),
    ],
)  # fmt: skip
def test_outputs_without_a_rule_are_refused(layer, pool, text):
    net = Net()
    with ActivationRegularizer(net, layer, pool=pool):
        assert refused(lambda: net(images())).startswith(text)


@pytest.mark.door
def test_outputs_that_are_no_activations_are_refused():
    class Odd(nn.Module):
        def forward(self, x: Any) -> Any:
            return x

    for x, text in (((torch.zeros(2, 3),), "a tuple"), (torch.zeros(2, 3).long(), "dtype torch.int64")):
        model = nn.Sequential(Odd())
        with ActivationRegularizer(model, "0"):
            assert refused(lambda model=model, x=x: model(x)).startswith(f"the output of '0': got {text}; expected ")
    assert refused(lambda: ActivationRegularizer(model, "0", pool="max")) == (
        "pool: got 'max'; expected one of 'mean', 'first'"
    )
