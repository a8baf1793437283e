"""MonoLoss on any layer of any model, in a training loop of one's own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from difflib import get_close_matches
from types import TracebackType
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from monoloss.checks import check_choice, check_type
from monoloss.checks.tensors import check_matrix
from monoloss.errors import InputError
from monoloss.losses import MonoLoss

Pool = Literal["mean", "first"] | Callable[[Any], Tensor]
_N_NEAR = 3  # names that an error shows


class ActivationRegularizer:
    """MonoLoss on the activations of a named layer, kept by a forward hook: ``task + mono_weight * regularizer(e)``.

    ``regularizer(embeddings)`` belongs behind each forward pass of the model, and uses the activations of that pass.
    Forward passes without gradients (validation under ``torch.no_grad()``) may come in between; they are not counted.

    What one image has in the layer is one row. Rows ``(n, c)`` stay as they are; maps ``(n, c, h, w)`` are averaged
    over their positions; so are token sequences ``(n, t, c)`` with ``pool="mean"``, while ``pool="first"`` takes their
    first token, which in most vision transformers is the class token. Anything else needs a function.

    Activations of any sign can be regularised: a latent counts as active by how far it is above its minimum in the
    batch. With ``MonoLoss(memory=...)`` they must be at least 0: name the layer behind a ReLU, or put one into
    ``pool``.

    It works through wrappers, whose prefixes the name leaves out, and with

    - DistributedDataParallel: MonoLoss scores the batch of all processes, so two processes train as one;
    - autocast: maps are averaged in float32 at least, and MonoLoss keeps its precision;
    - ``torch.compile``, with ``fullgraph=True`` too: either make the regularizer first, or give it the compiled model,
      which then is compiled anew (``torch.compiler.reset()``);
    - gradient accumulation: each forward pass is a batch of its own, so divide its loss as the task's;
    - ``torch.utils.checkpoint`` with ``use_reentrant=False``. The other kind runs layers without gradients, which is
      refused;
    - copies of the model (an average of its weights): they do not see the hook.

    Args:
        model: any module. It is not changed but for the hook.
        layer: a name as in ``model.named_modules()``.
        loss: called as ``loss(embeddings, activations)``; None for the paper's ``MonoLoss()``. A module is put into
            ``train()`` or ``eval()`` as the model was, so that validation leaves its memory alone. What it remembers is
            in ``regularizer.loss.state_dict()``, to be saved beside the model.
        pool: what makes one row an image: "mean", "first", or a function of the layer's output that gives ``(n, m)``.

    Raises:
        InputError: at construction, a layer that there is none of (the error names the nearest); at the call, no
            forward pass since the last call, or several; other row counts than those of the embeddings; activations
            that have no gradient; what the loss refuses. In the forward pass, an output that ``pool`` has no rule for.

    Source:
        arXiv 2602.12403, the batch loss on a layer of a vision model.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> with ActivationRegularizer(model, layer="1") as regularizer:
        ...     logits = model(torch.randn(16, 4))
        ...     loss = logits.square().mean() + 0.05 * regularizer(torch.randn(16, 3))
        ...     loss.backward()
        >>> bool(model[0].weight.grad.any())
        True
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        *,
        pool: Pool = "mean",
    ) -> None:
        check_type("model", model, nn.Module, "a torch.nn.Module")
        check_type("layer", layer, str, "the name of a layer")
        self._model = _unwrapped(model)
        module = _named(self._model, layer)
        if not callable(pool):
            check_choice("pool", pool, ("mean", "first"))
        if loss is not None and not callable(loss):
            raise InputError("loss", f"a {type(loss).__name__}", "a function of embeddings and activations, or None")
        self.layer = layer
        self.loss = MonoLoss() if loss is None else loss
        self.pool = pool
        self.is_open = True
        self._with_gradient: _Run | None = None
        self._without: _Run | None = None
        self._handle = module.register_forward_hook(_Hook(self))
        if _is_compiled(model):
            torch.compiler.reset()  # what was compiled before does not look at hooks again

    def __call__(self, embeddings: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        """The loss on the activations of the forward pass since the last call.

        Args:
            embeddings: ``(n, d)``, fixed embeddings of the images of that pass, in their order.
        """
        check_matrix("embeddings", embeddings)
        run = self._only_run()
        if len(run.activations) != len(embeddings):
            expected = f"as many as the forward pass had in {self.layer!r}, {len(run.activations)}"
            raise InputError("embeddings", f"{len(embeddings)} rows", expected)
        self.clear()
        if isinstance(self.loss, nn.Module):
            self.loss.train(run.training)
        return self.loss(embeddings, run.activations)

    def activations(self) -> Float[Tensor, "n m"]:
        """The rows that the next call would use, on the graph; they are kept for it."""
        return self._only_run().activations

    def clear(self) -> None:
        """Forget the forward passes since the last call, where one is not to be regularised."""
        self._with_gradient = self._without = None

    def close(self) -> None:
        """Take the hook off the model; a second time it does nothing."""
        self._handle.remove()
        self.is_open = False
        self.clear()

    def __enter__(self) -> ActivationRegularizer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _keep(self, output: Any) -> None:
        """What the hook does with the layer's output."""
        rows = _pooled(output, self.pool, self.layer)
        # recomputed in a backward pass, by torch.utils.checkpoint: pooled again like the first time, but not kept
        if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:  # noqa: SLF001
            return
        training = self._model.training
        if rows.requires_grad:
            self._with_gradient = _next(self._with_gradient, rows, training)
        else:
            self._without = _next(self._without, rows, training)

    def _only_run(self) -> _Run:
        """The one run of the layer that a call can mean."""
        if not self.is_open:
            raise InputError("regularizer", "a call after close()", "a new ActivationRegularizer")
        if torch.is_grad_enabled():
            if self._with_gradient is None and self._without is not None:
                expected = (
                    "activations that require one: no frozen layer, no forward pass under torch.no_grad(), "
                    "torch.utils.checkpoint with use_reentrant=False; or a call under torch.no_grad()"
                )
                raise InputError(f"layer {self.layer!r}", "activations without a gradient", expected)
            run = self._with_gradient
        else:
            run = self._without or self._with_gradient
        if run is None:
            expected = f"one that goes through {self.layer!r}; of a compiled model, torch.compiler.reset() before it"
            raise InputError("model", "no forward pass since the last call", expected)
        if run.n_runs > 1:
            expected = "one; clear() forgets those that are not to be regularised, and a module that the model uses "
            expected += "several times in a pass cannot be"
            raise InputError(f"layer {self.layer!r}", f"{run.n_runs} runs since the last call", expected)
        return run


class _Run(NamedTuple):
    """Rows of the last run of a layer, how many there were, and whether the model was in ``train()``."""

    activations: Tensor
    training: bool
    n_runs: int


class _Hook:
    """A forward hook that gives its regularizer the output; in a copy of the model it does nothing."""

    def __init__(self, regularizer: ActivationRegularizer | None) -> None:
        self.regularizer = regularizer

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        # asked here, too: what was compiled with the hook in it sees by this that it is closed
        if self.regularizer is not None and self.regularizer.is_open:
            self.regularizer._keep(output)  # noqa: SLF001 - two halves of one thing

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hook:
        return _Hook(None)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, (None,)


def _next(before: _Run | None, rows: Tensor, training: bool) -> _Run:
    """One run more; runs in the other mode, as of a validation that was not regularised, are forgotten."""
    same = before is not None and before.training == training
    return _Run(rows, training, before.n_runs + 1 if same and before is not None else 1)


def _pooled(output: Any, pool: Pool, layer: str) -> Tensor:
    """One row an image, new: what the model does to its output in place does not reach it."""
    name = f"the output of {layer!r}"
    if callable(pool):
        rows = pool(output)
        check_matrix(f"{name} after pool", rows)
        return rows
    expected = "a tensor (n, c), (n, t, c) or (n, c, h, w), or a function as pool that makes one row an image"
    if not isinstance(output, Tensor):
        raise InputError(name, f"a {type(output).__name__}", expected)
    if not output.is_floating_point():
        raise InputError(name, f"dtype {output.dtype}", "floating-point numbers")
    if output.ndim == 2:
        return output.clone()
    if output.ndim == 3 and pool == "first":
        return output[:, 0].clone()
    if output.ndim not in (3, 4) or pool == "first":
        raise InputError(name, f"shape {tuple(output.shape)} for pool {pool!r}", expected)
    wide = torch.promote_types(output.dtype, torch.float32)
    return output.mean((2, 3), dtype=wide) if output.ndim == 4 else output.mean(1, dtype=wide)


def _is_compiled(model: nn.Module) -> bool:
    """Some part of a model runs compiled, by ``torch.compile(part)`` or ``part.compile()``."""
    marks = ("_orig_mod", "_compiled_call_impl")
    return any(getattr(part, mark, None) is not None for part in model.modules() for mark in marks)


def _unwrapped(model: nn.Module) -> nn.Module:
    """The user's own module inside DistributedDataParallel and ``torch.compile``."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment] # noqa: SLF001 - where torch.compile keeps it
        else:
            return model


def _named(model: nn.Module, layer: str) -> nn.Module:
    """The layer of that name, or an error with the nearest names."""
    with suppress(AttributeError):
        if layer:
            return model.get_submodule(layer)
    names = [name for name, _ in model.named_modules() if name]
    near = get_close_matches(layer, names, n=_N_NEAR)
    near = near or [name for name, _ in model.named_children()]
    expected = f"a name of model.named_modules(), such as {', '.join(map(repr, near))}"
    raise InputError("layer", repr(layer), expected if near else "a model that has layers")
