"""The check that a closed-form gradient is not differentiated again."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from monoloss.errors import InputError

Backward = Callable[..., Any]


def first_derivatives_only(what: str) -> Callable[[Backward], Backward]:
    """Decorate the ``backward`` of a Function that computes its gradient without a graph.

    A backward pass with ``create_graph=True`` is an error that names ``what``. torch's ``once_differentiable`` alone
    raises only where the incoming gradient requires one: of ``1 - mean`` it never does, and second derivatives would be
    0 without a word.
    """

    def decorate(backward: Backward) -> Backward:
        once = torch.autograd.function.once_differentiable(backward)

        @wraps(backward)
        def refusing(ctx: Any, *grads: Any) -> Any:
            if torch.is_grad_enabled() and not torch.compiler.is_compiling():
                expected = f"create_graph=False: {what} has first derivatives only"
                raise InputError("create_graph", "True", expected)
            return once(ctx, *grads)

        return refusing

    return decorate
