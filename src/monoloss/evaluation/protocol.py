"""What can be evaluated: what encodes rows, or stored activations; with a decoder its reconstruction is judged too."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from monoloss.checks.tensors import check_matrix
from monoloss.errors import InputError
from monoloss.sae.model import SparseAutoencoder
from monoloss.sparse import Activations, SparseActivations
from monoloss.sparse.activations import offsets_of_sorted_rows


@runtime_checkable
class Encoder(Protocol):
    """Turns input rows ``(n, d_in)`` into activations ``(n, m)``, dense or sparse; each row by itself."""

    def encode(self, inputs: Tensor) -> Activations:
        """Activations of some rows."""
        ...


@runtime_checkable
class Decoder(Protocol):
    """Turns activations back into rows in the space of the inputs."""

    def decode(self, codes: Activations) -> Tensor:
        """Rows rebuilt from their activations."""
        ...


@runtime_checkable
class ByPosition(Protocol):
    """Activations of the rows of one store, asked for by position: read from a file, or made of what the rows show."""

    @property
    def description(self) -> str:
        """What the activations are, in a few words."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the activations come."""
        ...

    def rows(self, start: int, stop: int) -> Activations:
        """Activations of the rows ``start`` to ``stop`` (exclusive)."""
        ...

    def __len__(self) -> int:
        """How many rows there are."""
        ...


@runtime_checkable
class SelfDescribing(Protocol):
    """A model that adds measures of its own, and says where it comes from; models need not."""

    def measures(self) -> dict[str, float]:
        """Measures for the summary, once every row was asked for."""
        ...

    def model_metadata(self) -> dict[str, Any]:
        """Facts for its evaluation, in plain values."""
        ...


class Judged(NamedTuple):
    """What one model makes of some rows.

    Attributes:
        activations: ``(n, m)``.
        reconstruction: ``(n, d_in)`` in the space of ``target``, or None without a decoder.
        target: the rows that the reconstruction is compared with.
    """

    activations: Activations
    reconstruction: Float[Tensor, "n d_in"] | None
    target: Float[Tensor, "n d_in"]


def judge(
    name: str, model: Encoder | ByPosition, inputs: Float[Tensor, "n d_in"], start: int, *, rebuild: bool = True
) -> Judged:
    """Encode the rows from number ``start`` on, and rebuild them where the model can and ``rebuild`` asks for it."""
    if isinstance(model, ByPosition):
        return Judged(model.rows(start, start + len(inputs)), None, inputs)
    if isinstance(model, SparseAutoencoder):
        if not rebuild:
            activations, _ = model.activate(model.scale(inputs).scaled)
            return Judged(activations, None, inputs)
        output = model(inputs)
        return Judged(output.codes, output.reconstruction, output.target)
    activations = model.encode(inputs)
    if not isinstance(activations, SparseActivations):
        check_matrix(f"models[{name!r}].encode(inputs)", activations, rows=inputs.shape[0])
    elif activations.shape[0] != inputs.shape[0]:
        raise InputError(f"models[{name!r}].encode(inputs)", f"{len(activations)} rows", f"{inputs.shape[0]} rows")
    reconstruction = model.decode(activations) if rebuild and isinstance(model, Decoder) else None
    return Judged(activations, reconstruction, inputs)


def latents_of(activations: Activations, first: int, stop: int) -> Float[Tensor, "n latents"] | SparseActivations:
    """The activations of the latents ``first`` to ``stop`` (exclusive) alone, in the layout they have."""
    if first == 0 and stop == activations.shape[1]:
        return activations
    if not isinstance(activations, SparseActivations):
        return activations[:, first:stop]
    indices = activations.flat_indices
    kept = ((indices >= first) & (indices < stop)).nonzero().squeeze(1)
    offsets = offsets_of_sorted_rows(activations.rows[kept], activations.shape[0])
    values = activations.flat_values[kept]
    return SparseActivations(values, indices[kept] - first, stop - first, offsets, check=False)


def check_models(models: object, n_rows: int, width: int) -> None:
    """Refuse what is not a mapping from names to models that fit a store of ``n_rows`` rows of a width."""
    if not isinstance(models, dict) or not models:
        got = f"an empty {type(models).__name__}" if isinstance(models, dict) else type(models).__name__
        raise InputError("models", got, "a dict from names to models with encode(inputs)")
    for name, model in models.items():
        if not isinstance(model, Encoder | ByPosition):
            raise InputError(f"models[{name!r}]", type(model).__name__, "a model with encode(inputs)")
        if isinstance(model, ByPosition) and len(model) != n_rows:
            got = f"{len(model)} rows in {getattr(model, 'path', model.description)}"
            raise InputError(f"models[{name!r}]", got, f"as many as the store has, {n_rows}")
        if isinstance(model, SparseAutoencoder) and model.d_in != width:
            raise InputError("store", f"rows of width {width} for models[{name!r}]", f"its width, {model.d_in}")


def modes(models: dict[str, Encoder | ByPosition]) -> list[tuple[nn.Module, bool]]:
    """Every module below the models with its training flag, so that evaluation can put it back."""
    found = [model for model in models.values() if isinstance(model, nn.Module)]
    return [(part, part.training) for model in found for part in model.modules()]


def device_of(model: Encoder | ByPosition, otherwise: torch.device) -> torch.device:
    """Where a model wants its rows: the device of its parameters, if it has any; or where its activations come."""
    if isinstance(model, ByPosition):
        return model.device
    parameters = model.parameters() if isinstance(model, nn.Module) else iter(())
    return next((parameter.device for parameter in parameters), otherwise)
