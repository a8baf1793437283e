"""ActivationRegularizer in training loops: each mode gives the loss and gradients of the plain loop."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from monoloss.functional.loss import mono_loss
from monoloss.losses import MonoLoss
from monoloss.regularizer import ActivationRegularizer
from support.regularized_nets import N, Net, assert_same, embeddings, expected, gradients, images, n_hooks, step


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
    assert regularizer._with_gradient is None  # the compiled code stores nothing any more
    torch.compiler.reset()


def test_wrapped_for_several_processes(tmp_path):
    """With one process; with two in ``test_two_processes.py``."""
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


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_do_not_see_the_hook(copied):
    net = Net()
    with ActivationRegularizer(net, "stem") as regularizer:
        net(images())
        other = copied(net)  # holds no tensor of the graph either, which could not be copied
        other(images(3))
        assert len(regularizer.activations()) == N
    assert n_hooks(net) == 0
