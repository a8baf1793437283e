"""A small net with maps, tokens and rows, its regularized training step, and the same step without hooks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from monoloss.functional.loss import mono_loss
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
    """The rows of each layer, computed without hooks."""
    maps = net.stem(images())
    tokens = net.tokens(maps.flatten(2).mT)
    return {
        "stem": maps.mean((2, 3)),
        "stem.0": net.stem[0](images()).mean((2, 3)),
        "tokens": tokens.mean(1),
        "rows": net.rows(tokens.mean(1)),
    }


def gradients(net: nn.Module) -> list[Tensor]:
    """The gradient of each parameter, 0 if it has none."""
    return [torch.zeros(()) if p.grad is None else p.grad.clone() for p in net.parameters()]


@torch.enable_grad()
def expected(layer: str = "stem") -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of task + 0.5 MonoLoss, by hand."""
    net = Net()
    mono = mono_loss(embeddings(), by_hand(net)[layer])
    (net(images()).square().mean() + 0.5 * mono).backward()
    return mono.detach(), gradients(net)


def step(net: Net, model: nn.Module, regularizer: ActivationRegularizer, n: int = N) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of task + 0.5 regularizer, of the net itself or of a model that wraps it."""
    net.zero_grad()
    task = model(images(n)).square().mean()
    mono = regularizer(embeddings(n))
    (task + 0.5 * mono).backward()
    return mono.detach(), gradients(net)


def assert_same(got: tuple[Tensor, list[Tensor]], expected: tuple[Tensor, list[Tensor]], atol: float = 1e-6) -> None:
    """Two pairs of a loss and gradients are equal but for rounding."""
    torch.testing.assert_close(got[0], expected[0], rtol=0, atol=atol)
    for got_gradient, gradient in zip(got[1], expected[1], strict=True):
        torch.testing.assert_close(got_gradient, gradient, rtol=0, atol=atol)


def n_hooks(model: nn.Module) -> int:
    """Number of forward hooks in the model."""
    return sum(len(module._forward_hooks) for module in model.modules())
