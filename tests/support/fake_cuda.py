"""A GPU that is not there: shapes, dtypes and devices of CUDA tensors without values, which find waits and copies.

`torch`'s fake tensors raise where the result depends on values that only a GPU has: ``bool(t)``, ``.item()``,
``nonzero``, masks as indices. There a real GPU makes the process wait. Whatever mixes two devices is a copy over the
bus: ``.cpu()``, indices or numbers that were made on the CPU, ``torch.tensor(3.0, device="cuda")``.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = (DataDependentOutputException, DynamicOutputShapeException)


class CopyError(AssertionError):
    """An operation whose tensors are on two kinds of devices."""


class _NoCopies(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs, result))
        devices = {leaf.device.type for leaf in leaves if isinstance(leaf, Tensor)}
        if len(devices) > 1:
            raise CopyError(f"{func} between {' and '.join(sorted(devices))}")
        return result


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Make tensors and modules inside on a GPU without values; factories put them there unless a device is named."""
    with FakeTensorMode(allow_non_fake_inputs=False), torch.device("cuda"):
        yield


def first_wait(call: Callable[[], object]) -> str | None:
    """Return what makes ``call()`` wait or copy first, and the line of the library that does; None if nothing does."""
    try:
        with _NoCopies():
            call()
    except (*WAITS, CopyError) as error:
        lines = traceback.extract_tb(error.__traceback__)
        ours = [line for line in lines if "/monoloss/" in line.filename and "/tests/" not in line.filename]
        place = f"{ours[-1].filename.rsplit('/monoloss/', 1)[1]}:{ours[-1].lineno} {ours[-1].line}" if ours else "?"
        return f"{type(error).__name__} {getattr(error, 'func', error)} at {place}"
    return None


def backward(loss: Tensor) -> None:
    """Do ``loss.backward()`` node by node: torch's engine asks the driver for streams, which a machine without has not.

    Adds to ``.grad`` of the leaves.
    """
    assert loss.grad_fn is not None
    waiting = _n_users(loss.grad_fn)
    gradients: dict[Any, dict[int, Tensor]] = {loss.grad_fn: {0: torch.ones_like(loss)}}
    ready = [loss.grad_fn]
    with torch.no_grad():
        while ready:
            node = ready.pop()
            given = gradients.pop(node, {})
            if hasattr(node, "variable"):
                for gradient in given.values():
                    leaf = node.variable
                    leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
                continue
            results: Any = ()
            if given:
                run = node.apply if isinstance(node, torch.autograd.function.BackwardCFunction) else node
                results = run(*(given.get(i) for i in range(max(given) + 1)))
                results = results if isinstance(results, tuple) else (results,)
            for i, (following, position) in enumerate(node.next_functions):
                if following is None:
                    continue
                if i < len(results) and results[i] is not None:
                    expected = following._input_metadata[position]
                    result = results[i].sum_to_size(expected.shape).to(expected.dtype)  # as the engine does
                    at = gradients.setdefault(following, {})
                    at[position] = at[position] + result if position in at else result
                waiting[following] -= 1
                if waiting[following] == 0:
                    ready.append(following)


def _n_users(root: Any) -> dict[Any, int]:
    """Count, for every node behind ``root``, the edges that lead to it."""
    n_users: dict[Any, int] = {root: 0}
    stack = [root]
    while stack:
        for following, _ in stack.pop().next_functions:
            if following is not None:
                if following not in n_users:
                    n_users[following] = 0
                    stack.append(following)
                n_users[following] += 1
    return n_users
