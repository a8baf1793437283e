"""ActivationRegularizer: the loss of what the layer gave, in anybody's loop, and no trace of it afterwards."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from monoloss.errors import InputError
from monoloss.functional.loss import mono_loss
from monoloss.losses import MonoLoss
from monoloss.regularizer import ActivationRegularizer

N, D = 12, 5


class Net(nn.Module):
    """Maps, then tokens, then rows; a part of it can be recomputed in the backward pass."""

    def __init__(self, recompute: bool | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
        self.tokens = nn.Linear(6, 7)
        self.rows = nn.Linear(7, 4)
        self.head = nn.Linear(4, 2)
        self.recompute = recompute  # None: no; else the value of use_reentrant

    def forward(self, images: Tensor) -> Tensor:
        maps = (
            self.stem(images) if self.recompute is None else checkpoint(self.stem, images, use_reentrant=self.recompute)
        )
        tokens = self.tokens(maps.flatten(2).mT)
        return self.head(self.rows(tokens.mean(1)).relu())


def images(n: int = N) -> Tensor:
    return torch.randn(n, 3, 5, 6, generator=torch.Generator().manual_seed(1))


def embeddings(n: int = N) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(2))


def by_hand(net: Net) -> dict[str, Tensor]:
    """What a caller would compute without hooks."""
    maps = net.stem(images())
    tokens = net.tokens(maps.flatten(2).mT)
    return {
        "stem": maps.mean((2, 3)),
        "stem.0": net.stem[0](images()).mean((2, 3)),
        "tokens": tokens.mean(1),
        "rows": net.rows(tokens.mean(1)),
    }


def gradients(net: nn.Module) -> list[Tensor]:
    return [torch.zeros(()) if p.grad is None else p.grad.clone() for p in net.parameters()]


@torch.enable_grad()
def expected(layer: str = "stem") -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of task + 0.5 MonoLoss, by hand."""
    net = Net()
    mono = mono_loss(embeddings(), by_hand(net)[layer])
    (net(images()).square().mean() + 0.5 * mono).backward()
    return mono.detach(), gradients(net)


def step(net: Net, model: nn.Module, regularizer: ActivationRegularizer, n: int = N) -> tuple[Tensor, list[Tensor]]:
    net.zero_grad()
    task = model(images(n)).square().mean()
    mono = regularizer(embeddings(n))
    (task + 0.5 * mono).backward()
    return mono.detach(), gradients(net)


def assert_same(got: tuple[Tensor, list[Tensor]], expected: tuple[Tensor, list[Tensor]], atol: float = 1e-6) -> None:
    torch.testing.assert_close(got[0], expected[0], rtol=0, atol=atol)
    for mine, theirs in zip(got[1], expected[1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=atol)


def n_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


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


@pytest.mark.parametrize("scaled", [False, True])
def test_autocast(scaled):
    """In bfloat16, and with a scaler as float16 has it: the same gradients but for the rounding of the layers."""
    net, in_float32 = Net(), expected()
    scaler = torch.amp.GradScaler("cpu", enabled=scaled)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    with ActivationRegularizer(net, "stem") as regularizer:
        with torch.autocast("cpu", torch.bfloat16):
            task = net(images()).square().mean()
            mono = regularizer(embeddings())
        assert mono.dtype == torch.float32
        scaler.scale(task + 0.5 * mono).backward()
        scaler.unscale_(optimizer)
    assert_same((mono.detach(), gradients(net)), in_float32, atol=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize("before", [True, False], ids=["hook first", "compiled first"])
def test_compiled(before):
    """One graph; the aot_eager backend traces as the others do, and needs no compiler."""
    net = Net()
    first = ActivationRegularizer(net, "stem") if before else None
    model = torch.compile(net, backend="aot_eager", fullgraph=True)
    if first is None:
        model(images())  # compiled without a hook
    with first or ActivationRegularizer(model, "stem") as regularizer:
        for _ in range(2):
            assert_same(step(net, model, regularizer), expected())
        model.eval()
        with torch.no_grad():
            model(images())
            torch.testing.assert_close(regularizer(embeddings()), expected()[0])
        model.train()
    assert n_hooks(net) == 0
    model(images())
    assert regularizer._with_gradient is None  # what was compiled keeps nothing, either
    torch.compiler.reset()


def test_wrapped_for_several_processes(tmp_path):
    """With one process here; with two in test_distributed."""
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'rendezvous'}", world_size=1, rank=0)
    try:
        net = Net()
        model = DistributedDataParallel(net)
        with ActivationRegularizer(model, "stem") as regularizer:
            assert_same(step(net, model, regularizer), expected())
        assert n_hooks(model) == 0
    finally:
        torch.distributed.destroy_process_group()


def test_accumulated_batches_are_batches_of_their_own():
    net = Net()
    parts = [slice(0, 5), slice(5, N)]
    with ActivationRegularizer(net, "stem") as regularizer:
        for part in parts:
            task = net(images()[part]).square().mean()
            ((task + 0.5 * regularizer(embeddings()[part])) / len(parts)).backward()
    got, net = gradients(net), Net()
    for part in parts:
        mono = mono_loss(embeddings()[part], net.stem(images()[part]).mean((2, 3)))
        ((net(images()[part]).square().mean() + 0.5 * mono) / len(parts)).backward()
    assert_same((torch.zeros(()), got), (torch.zeros(()), gradients(net)))


@pytest.mark.parametrize("pool", ["mean", lambda maps: maps.relu().amax((2, 3))])
def test_recomputed_layers_are_counted_once(pool):
    got = {}
    for recompute in (None, False):
        net = Net(recompute)
        with ActivationRegularizer(net, "stem.0", pool=pool) as regularizer:
            for _ in range(2):
                got[recompute] = step(net, net, regularizer)
            assert regularizer._with_gradient is None  # the backward pass has run the layer again
    assert_same(got[False], got[None])


def test_a_loss_in_validation_leaves_the_memory_alone():
    net, criterion = Net(), MonoLoss(memory=0.9)
    with ActivationRegularizer(net, "stem", criterion) as regularizer:
        step(net, net, regularizer)
        before = {name: buffer.clone() for name, buffer in criterion.named_buffers()}
        net.eval()
        with torch.no_grad():
            net(images())
            torch.testing.assert_close(regularizer(embeddings()), expected()[0])
        assert not criterion.training
        for name, buffer in criterion.named_buffers():
            assert torch.equal(buffer, before[name]), name
        net.train()
        step(net, net, regularizer)
        assert int(criterion.step) == 2


@pytest.mark.parametrize("with_gradient", [False, True])
def test_validation_in_between_is_not_counted(with_gradient):
    net = Net()
    with ActivationRegularizer(net, "stem") as regularizer:
        net.eval()
        with torch.set_grad_enabled(with_gradient):
            for n in (3, 4, 5):
                net(images(n))
        net.train()
        assert_same(step(net, net, regularizer), expected())
        net(images())
        with torch.no_grad():  # a look at the loss of a pass with gradients
            torch.testing.assert_close(regularizer(embeddings()), expected()[0])


def test_a_pass_that_is_forgotten():
    net = Net()
    with ActivationRegularizer(net, "stem") as regularizer:
        net(images(3))
        regularizer.clear()
        assert_same(step(net, net, regularizer), expected())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_do_not_see_the_hook(copied):
    net = Net()
    with ActivationRegularizer(net, "stem") as regularizer:
        net(images())
        other = copied(net)  # holds no tensor of the graph either, which could not be copied
        other(images(3))
        assert len(regularizer.activations()) == N
    assert n_hooks(net) == 0


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
        ("stem", "first", "the output of 'stem': got shape (12, 6, 3, 4) for pool 'first'; expected a tensor (n, c), "),
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
