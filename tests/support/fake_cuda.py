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
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

# `t[mask] = values` and operators that wait to tell whether they have failed: fake tensors let both pass
_PUTS = (torch.ops.aten.index_put, torch.ops.aten.index_put_, torch.ops.aten._index_put_impl_)
_SYNCHRONISING = (
    torch.ops.aten.linalg_inv_ex,
    torch.ops.aten.linalg_cholesky_ex,
    torch.ops.aten.linalg_solve_ex,
    torch.ops.aten._linalg_solve_ex,
    torch.ops.aten._linalg_eigh,
    torch.ops.aten.multinomial,
    torch.ops.aten.nonzero_static,
    torch.ops.aten.masked_scatter,
)
WAITS = (DataDependentOutputException, DynamicOutputShapeException)


class CopyError(AssertionError):
    """An operation whose tensors are on two kinds of devices."""


class _Watch(TorchDispatchMode):
    """Refuses copies, and lists the places where ``nonzero`` waits; its results have some fixed number of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.nonzero.default:
            self.waits.append(f"nonzero at {_place(traceback.extract_stack())}")
            return torch.empty(max(1, args[0].numel() // 100), args[0].ndim, dtype=torch.int64, device=args[0].device)
        if func.overloadpacket in _PUTS and any(_is_mask(index) for index in args[1]):
            self.waits.append(f"a mask as index at {_place(traceback.extract_stack())}")
        if func.overloadpacket in _SYNCHRONISING:
            self.waits.append(f"{func} at {_place(traceback.extract_stack())}")
        result = func(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs, result))
        devices = {leaf.device.type for leaf in leaves if isinstance(leaf, Tensor)}
        if len(devices) > 1:
            raise CopyError(f"{func} between {' and '.join(sorted(devices))}")
        return result


def _is_mask(index: object) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


def _printed(_tensor: object, *_: object) -> str:
    raise CopyError("a tensor is printed")


def _place(lines: traceback.StackSummary) -> str:
    """Return file, number and text of the innermost line of the library."""
    ours = [line for line in lines if "/src/monoloss/" in line.filename]
    return f"{ours[-1].filename.rsplit('/monoloss/', 1)[1]}:{ours[-1].lineno}: {ours[-1].line}" if ours else "?"


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Make tensors and modules inside on a GPU without values; factories put them there unless a device is named."""
    # A copy by torch would copy memory that a fake tensor does not have
    cloned = patch.object(FakeTensor, "__deepcopy__", lambda tensor, _memo: tensor.clone(), create=True)
    other_modes_off = _disable_current_modes()  # that of support/rounding.py would look at values
    with other_modes_off, FakeTensorMode(allow_non_fake_inputs=False), torch.device("cuda"), cloned:
        yield


def waits_of(call: Callable[[], object]) -> list[str]:
    """Return what makes ``call()`` wait or copy, each with its line of the library.

    After ``nonzero`` it goes on; the first of most other kinds is the last of the list. Nothing is seen of what happens
    inside the operators of ``monoloss.sparse.products``, nor of events that the caller waits for.
    """
    with _Watch() as watch, patch.multiple(FakeTensor, __repr__=_printed, __format__=_printed):
        try:
            call()
        except (*WAITS, CopyError) as error:
            place = _place(traceback.extract_tb(error.__traceback__))
            return [*watch.waits, f"{getattr(error, 'func', error)} at {place}"]
    return watch.waits


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
            for (following, position), result in _edges(node, given):
                if result is not None:
                    expected = following._input_metadata[position]
                    gradient = result.sum_to_size(expected.shape).to(expected.dtype)  # as the engine does
                    at = gradients.setdefault(following, {})
                    at[position] = at[position] + gradient if position in at else gradient
                waiting[following] -= 1
                if waiting[following] == 0:
                    ready.append(following)


def _edges(node: Any, given: dict[int, Tensor]) -> list[tuple[tuple[Any, int], Tensor | None]]:
    """Return the edges that lead on from a node, each with the gradient that goes along it."""
    edges = list(node.next_functions)
    if not given:
        return [(edge, None) for edge in edges if edge[0] is not None]
    arguments = [given.get(i) for i in range(len(node._input_metadata))]  # nodes in C++ do not check their number
    if not isinstance(node, torch.autograd.function.BackwardCFunction):
        results = node(*arguments)
        results = results if isinstance(results, tuple) else (results,)
        return [(edge, result) for edge, result in zip(edges, results, strict=True) if edge[0] is not None]
    results = node.apply(*arguments)  # one for each argument of `forward`; edges there are for tensors alone
    results = results if isinstance(results, tuple) else (results,)
    wanted = [result for result, needed in zip(results, node.needs_input_grad, strict=True) if needed]
    return list(zip((edge for edge in edges if edge[0] is not None), wanted, strict=True))


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
