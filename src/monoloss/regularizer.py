"""MonoLoss on any layer of any model, for any training loop."""

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
Channels = Literal["first", "last"]
_N_NEAR = 3  # similar names of layers in an error


class ActivationRegularizer:
    """MonoLoss on the activations of a named layer, read by a forward hook: ``task + mono_weight * regularizer(e)``.

    Call ``regularizer(embeddings)`` after each forward pass of the model; it uses the activations of that pass.
    Forward passes without gradients (validation under ``torch.no_grad()``) may lie in between; they are not counted.

    The output of the layer for one image becomes one row. Rows ``(n, c)`` are used unchanged; sequences and maps,
    ``(n, c, t)``, ``(n, t, c)``, ``(n, c, h, w)`` or ``(n, h, w, c)``, are averaged over their positions, while
    ``pool="first"`` takes the first token of ``(n, t, c)``, in most vision transformers the class token. For other
    outputs ``pool`` is a function. Which axis holds the channels follows from the layer's type, or from the numbers of
    channels of the modules in it, before it or around it; where both axes fit, or none, an error asks for ``channels``.
    In an ``nn.TransformerEncoder`` with ``batch_first=False`` tokens are ``(t, n, c)``.

    Activations of any sign can be regularised: a latent counts as active by how far it is above its minimum in the
    batch. With ``MonoLoss(memory=...)`` they must be at least 0: name the layer behind a ReLU, or put one into
    ``pool``.

    It works with

    - wrappers such as DistributedDataParallel and ``torch.compile``: ``layer`` is the name without their prefixes;
    - several processes: MonoLoss scores the batch of all of them, so that two processes train as one;
    - autocast: maps are averaged in float32 at least, and the precision of MonoLoss is not lowered;
    - ``torch.compile``, with ``fullgraph=True`` too: construct the regularizer before compiling, or with the compiled
      model, which is then compiled again (``torch.compiler.reset()``);
    - gradient accumulation: each forward pass is a batch, so divide its loss as that of the task;
    - ``torch.utils.checkpoint`` with ``use_reentrant=False``. With True, layers run without gradients, which is an
      error;
    - copies of the model (an average of its weights): the hook does nothing in them.

    Args:
        model: any module. It is not changed, except for the hook.
        layer: a name as in ``model.named_modules()``.
        loss: called as ``loss(embeddings, activations)``; None for the paper's ``MonoLoss()``. A module is set to
            ``train()`` or ``eval()`` as the model was in the forward pass, so that validation does not change its
            memory. Save ``regularizer.loss.state_dict()``, which holds the memory, with the model.
        pool: "mean", "first", or a function that makes rows ``(n, m)``, one for each image, of the layer's output.
        channels: the axis of the channels in sequences and maps, "first" (behind the images) or "last"; None: as above.

    Raises:
        InputError: at construction, no layer of that name (the error lists similar names); at the call, no forward
            pass since the last call, or several; embeddings of another number of rows; activations without a gradient;
            the errors of the loss. In the forward pass, an output that ``pool`` cannot turn into rows.

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
        channels: Channels | None = None,
    ) -> None:
        check_type("model", model, nn.Module, "a torch.nn.Module")
        check_type("layer", layer, str, "the name of a layer")
        self._model = _unwrapped(model)
        module = _named(self._model, layer)
        if not callable(pool):
            check_choice("pool", pool, ("mean", "first"))
        if channels is not None:
            check_choice("channels", channels, ("first", "last"))
        if loss is not None and not callable(loss):
            raise InputError("loss", f"a {type(loss).__name__}", "a function of embeddings and activations, or None")
        self.layer = layer
        self.loss = MonoLoss() if loss is None else loss
        self.pool = pool
        self._layout = _layout_of(self._model, layer, module, channels)
        self.is_open = True
        self._with_gradient: _Run | None = None
        self._without_gradient: _Run | None = None
        self._handle = module.register_forward_hook(_Hook(self))
        if _is_compiled(model):
            torch.compiler.reset()  # code compiled before would not call the hook

    def __call__(self, embeddings: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        """Compute the loss on the activations of the forward pass since the last call; a scalar on the graph.

        Args:
            embeddings: ``(n, d)``, fixed embeddings of the images of that pass, in the same order.
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
        """Return the rows that the next call uses, on the graph, without clearing them."""
        return self._only_run().activations

    def clear(self) -> None:
        """Forget the forward passes since the last call, for a pass that shall not be regularised."""
        self._with_gradient = self._without_gradient = None

    def close(self) -> None:
        """Remove the hook from the model. Closing twice is allowed; the regularizer can no longer be called."""
        self._handle.remove()
        self.is_open = False
        self.clear()

    def __enter__(self) -> ActivationRegularizer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _store(self, output: Any) -> None:
        """Pool the layer's output to rows and store them for the next call."""
        rows = _pooled(output, self.pool, self.layer, self._layout)
        # torch.utils.checkpoint runs the layer again in the backward pass, which must pool again but is no new run
        if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:  # noqa: SLF001
            return
        training = self._model.training
        if rows.requires_grad:
            self._with_gradient = _next(self._with_gradient, rows, training)
        else:
            self._without_gradient = _next(self._without_gradient, rows, training)

    def _only_run(self) -> _Run:
        """Return the run of the layer since the last call; raise InputError if there is none, or more than one.

        While gradients are enabled only runs with gradients count; else those without, or if none, those with.
        """
        if not self.is_open:
            raise InputError("regularizer", "a call after close()", "a new ActivationRegularizer")
        if torch.is_grad_enabled():
            if self._with_gradient is None and self._without_gradient is not None:
                expected = (
                    "activations that require one: no frozen layer, no forward pass under torch.no_grad(), "
                    "torch.utils.checkpoint with use_reentrant=False; or a call under torch.no_grad()"
                )
                raise InputError(f"layer {self.layer!r}", "activations without a gradient", expected)
            run = self._with_gradient
        else:
            run = self._without_gradient or self._with_gradient
        if run is None:
            expected = f"one that runs the layer {self.layer!r}; if the model is compiled, torch.compiler.reset() first"
            raise InputError("model", "no forward pass since the last call", expected)
        if run.n_runs > 1:
            expected = "one; call clear() after a pass that shall not be regularised. A layer that runs several times "
            expected += "in a forward pass cannot be regularised"
            raise InputError(f"layer {self.layer!r}", f"{run.n_runs} runs since the last call", expected)
        return run


class _Run(NamedTuple):
    """The last run of a layer, and the number of runs since the last call of the regularizer."""

    activations: Tensor  # rows (n, m) of the last run
    training: bool  # whether the model was in train()
    n_runs: int


class _Hook:
    """A forward hook that passes the layer's output to its regularizer; in a copy of the model it does nothing."""

    def __init__(self, regularizer: ActivationRegularizer | None) -> None:
        self.regularizer = regularizer

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        # is_open: compiled code still calls a hook that was removed
        if self.regularizer is not None and self.regularizer.is_open:
            self.regularizer._store(output)  # noqa: SLF001 - two halves of one thing

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hook:
        return _Hook(None)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, (None,)


def _next(before: _Run | None, rows: Tensor, training: bool) -> _Run:
    """Return the run after ``before``. Runs in the other mode, as of validation with gradients, are not counted."""
    same_mode = before is not None and before.training == training
    return _Run(rows, training, before.n_runs + 1 if same_mode and before is not None else 1)


class _Layout(NamedTuple):
    """What is known of the axes of a layer's output before it is seen."""

    channels: Channels | None  # None where only the sizes can tell
    sizes: tuple[frozenset[int], ...]  # numbers of channels in the layer, in what runs before it, in its parent, ...
    images: Literal["first", "second"] | None  # the axis of the images in sequences; None where nothing tells


_FIRST = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm)
_TRANSFORMERS = (nn.TransformerEncoderLayer, nn.TransformerEncoder, nn.TransformerDecoderLayer, nn.TransformerDecoder)
_LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.TransformerEncoderLayer, nn.TransformerEncoder)
_N_CHANNELS = ("out_channels", "out_features", "num_features", "num_channels", "embed_dim", "embedding_dim")


def _layout_of(model: nn.Module, layer: str, module: nn.Module, channels: Channels | None) -> _Layout:
    """Return what a layer's type and the modules in it and around it say of its output."""
    if channels is None and type(module) in _FIRST:  # not of a subclass: a LayerNorm2d has its channels first
        channels = "first"
    elif channels is None and type(module) in _LAST:
        channels = "last"
    names = layer.split(".")
    path = [module, *(model.get_submodule(".".join(names[:n])) for n in range(len(names) - 1, -1, -1))]
    levels: list[nn.Module] = []
    for level, parent in zip(path, [*path[1:], None], strict=True):
        levels.append(level)
        if isinstance(parent, nn.Sequential):  # what runs before the layer made the axes of its input
            before = list(parent)
            levels += reversed(before[: next(i for i, part in enumerate(before) if part is level)])
    return _Layout(channels, tuple(_numbers_of_channels(level) for level in levels), _images_of(path))


def _images_of(path: list[nn.Module]) -> Literal["first", "second"] | None:
    """Return the axis of the images in tokens of the layer ``path[0]``, whose parent is ``path[1]``, and so on."""
    for level in path:
        attention = [part for part in level.modules() if isinstance(part, nn.MultiheadAttention)]
        if attention and any(not part.batch_first for part in attention):
            if type(level) in _TRANSFORMERS:
                return "second"
            return None if level is not path[-1] else "first"  # the whole model: most of it may lie before the tokens
    return "first"


def _numbers_of_channels(module: nn.Module) -> frozenset[int]:
    """Return the numbers of channels that a module and the modules in it put out."""
    numbers = {getattr(part, name, None) for part in module.modules() for name in _N_CHANNELS}
    numbers |= {part.normalized_shape[-1] for part in module.modules() if isinstance(part, nn.LayerNorm | nn.RMSNorm)}
    return frozenset(number for number in numbers if isinstance(number, int))


def _channels_of(shape: torch.Size, layout: _Layout, name: str) -> Channels:
    """Return which axis of a sequence or of maps holds the channels; raise InputError where that is open."""
    if layout.channels is not None:
        return layout.channels
    for sizes in layout.sizes:
        first, last = shape[1] in sizes, shape[-1] in sizes
        if first and last:
            break
        if first or last:
            return "first" if first else "last"
    expected = f"channels='first' ({shape[1]} channels) or channels='last' ({shape[-1]}), or a function as pool"
    raise InputError(name, f"shape {tuple(shape)}, of which nothing says where the channels are", expected)


def _pooled(output: Any, pool: Pool, layer: str, layout: _Layout) -> Tensor:
    """Return one row for each image, as a new tensor, which in-place changes of the layer's output do not reach."""
    name = f"the output of {layer!r}"
    if callable(pool):
        rows = pool(output)
        check_matrix(f"{name} after pool", rows)
        return rows
    expected = "a tensor (n, c), (n, t, c), (n, c, t), (n, c, h, w) or (n, h, w, c), "
    expected += "or a function as pool that returns a row for each image"
    if not isinstance(output, Tensor):
        raise InputError(name, f"a {type(output).__name__}", expected)
    if not output.is_floating_point():
        raise InputError(name, f"dtype {output.dtype}", "floating-point numbers")
    if output.ndim == 2:
        return output.clone()
    if output.ndim not in (3, 4):
        raise InputError(name, f"shape {tuple(output.shape)} for pool {pool!r}", expected)
    if output.ndim == 3 and layout.images is None:
        got = f"shape {tuple(output.shape)} of a transformer with batch_first=False, of any order"
        raise InputError(name, got, "a function as pool, such as lambda tokens: tokens.mean(0) for (tokens, n, c)")
    if output.ndim == 3 and layout.images == "second":
        values, channels = output.transpose(0, 1), layout.channels or "last"
    else:
        values, channels = output, _channels_of(output.shape, layout, name)
    if pool == "first":
        if values.ndim == 4 or channels == "first":
            raise InputError(name, f"shape {tuple(output.shape)} for pool {pool!r}", "tokens (n, t, c); or " + expected)
        return values[:, 0].clone()
    wide = torch.promote_types(output.dtype, torch.float32)
    positions = range(2, values.ndim) if channels == "first" else range(1, values.ndim - 1)
    return values.mean(tuple(positions), dtype=wide)


def _is_compiled(model: nn.Module) -> bool:
    """Return whether a part of the model is compiled, by ``torch.compile(part)`` or ``part.compile()``."""
    marks = ("_orig_mod", "_compiled_call_impl")
    return any(getattr(part, mark, None) is not None for part in model.modules() for mark in marks)


def _unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside the wrappers of DistributedDataParallel and ``torch.compile``."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment] # noqa: SLF001 - where torch.compile keeps it
        else:
            return model


def _named(model: nn.Module, layer: str) -> nn.Module:
    """Return the layer of that name; raise InputError with similar names if there is none."""
    with suppress(AttributeError):
        if layer:
            return model.get_submodule(layer)
    names = [name for name, _ in model.named_modules() if name]
    similar = get_close_matches(layer, names, n=_N_NEAR) or [name for name, _ in model.named_children()]
    expected = f"a name of model.named_modules(), such as {', '.join(map(repr, similar))}"
    raise InputError("layer", repr(layer), expected if similar else "a model that has layers")
