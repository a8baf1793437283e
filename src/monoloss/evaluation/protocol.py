"""The kinds of models that can be evaluated, as protocols, and how their activations are computed."""

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
    """A model that encodes input rows ``(n, d_in)`` as activations ``(n, m)``, dense or sparse, each row by itself."""

    def encode(self, inputs: Tensor) -> Activations:
        """Return the activations ``(n, m)`` of inputs ``(n, d_in)``."""
        ...


@runtime_checkable
class Decoder(Protocol):
    """A model that reconstructs inputs from activations; evaluation then measures the reconstruction too."""

    def decode(self, codes: Activations) -> Tensor:
        """Return the reconstruction ``(n, d_in)`` from activations ``(n, m)``."""
        ...


@runtime_checkable
class ByPosition(Protocol):
    """Activations of the rows of one store, fetched by row number: read from a file, or computed from images."""

    @property
    def description(self) -> str:
        """A few words that say what the activations are."""
        ...

    @property
    def device(self) -> torch.device:
        """The device of the activations."""
        ...

    def rows(self, start: int, stop: int) -> Activations:
        """Return the activations of the rows ``start`` to ``stop`` (exclusive)."""
        ...

    def __len__(self) -> int:
        """Return the number of rows."""
        ...


@runtime_checkable
class SelfDescribing(Protocol):
    """A model that adds measures and metadata to its evaluation; optional."""

    def measures(self) -> dict[str, float]:
        """Return measures for the summary; called after all rows have been fetched."""
        ...

    def model_metadata(self) -> dict[str, Any]:
        """Return metadata for the evaluation, in values that JSON can hold."""
        ...


class EncodedBatch(NamedTuple):
    """The output of one model for a batch of rows."""

    activations: Activations
    reconstruction: Float[Tensor, "n d_in"] | None
    """In the space of ``target``; None without a decoder, or if it was not requested."""
    target: Float[Tensor, "n d_in"]
    """The rows that the reconstruction is compared with: the inputs, of a SAE with ``unit_norm`` at length 1."""


def encode_batch(
    name: str, model: Encoder | ByPosition, inputs: Float[Tensor, "n d_in"], start: int, *, decode: bool = True
) -> EncodedBatch:
    """Encode a batch whose first row has the number ``start``; with ``decode`` reconstruct it if the model can.

    Errors name the model as ``models[name]``.
    """
    if isinstance(model, ByPosition):
        return EncodedBatch(model.rows(start, start + len(inputs)), None, inputs)
    if isinstance(model, SparseAutoencoder):
        if not decode:
            activations, _ = model.activate(model.scale(inputs).scaled)
            return EncodedBatch(activations, None, inputs)
        output = model(inputs)
        return EncodedBatch(output.codes, output.reconstruction, output.target)
    activations = model.encode(inputs)
    if not isinstance(activations, SparseActivations):
        check_matrix(f"models[{name!r}].encode(inputs)", activations, rows=inputs.shape[0])
    elif activations.shape[0] != inputs.shape[0]:
        raise InputError(f"models[{name!r}].encode(inputs)", f"{len(activations)} rows", f"{inputs.shape[0]} rows")
    reconstruction = model.decode(activations) if decode and isinstance(model, Decoder) else None
    return EncodedBatch(activations, reconstruction, inputs)


def latents_of(activations: Activations, first: int, stop: int) -> Float[Tensor, "n latents"] | SparseActivations:
    """Return the columns ``first`` to ``stop`` (exclusive) of activations, in the layout (dense or sparse) of all."""
    if first == 0 and stop == activations.shape[1]:
        return activations
    if not isinstance(activations, SparseActivations):
        return activations[:, first:stop]
    indices = activations.flat_indices
    entries = ((indices >= first) & (indices < stop)).nonzero().squeeze(1)
    offsets = offsets_of_sorted_rows(activations.rows[entries], activations.shape[0])
    values = activations.flat_values[entries]
    return SparseActivations(values, indices[entries] - first, stop - first, offsets, check=False)


def check_models(models: object, n_rows: int, width: int) -> None:
    """Check that ``models`` is a dict from names to models that fit a store of ``n_rows`` rows of length ``width``."""
    if not isinstance(models, dict) or not models:
        got = f"an empty {type(models).__name__}" if isinstance(models, dict) else type(models).__name__
        raise InputError("models", got, "a dict from names to models with encode(inputs)")
    for name, model in models.items():
        if isinstance(model, str | bytes):  # which have an encode() too
            expected = "a model with encode(inputs); StoredActivations(path) reads activations from a file"
            raise InputError(f"models[{name!r}]", f"the text {model!r}", expected)
        if not isinstance(model, Encoder | ByPosition):
            raise InputError(f"models[{name!r}]", type(model).__name__, "a model with encode(inputs)")
        if isinstance(model, ByPosition) and len(model) != n_rows:
            got = f"{len(model)} rows in {getattr(model, 'path', model.description)}"
            raise InputError(f"models[{name!r}]", got, f"one for each row of the store, {n_rows}")
        if isinstance(model, SparseAutoencoder) and model.d_in != width:
            raise InputError("store", f"rows of width {width} for models[{name!r}]", f"the SAE's width, {model.d_in}")


def training_modes(models: dict[str, Encoder | ByPosition]) -> list[tuple[nn.Module, bool]]:
    """Return every module of the models, submodules too, with its ``training`` flag, so that it can be restored."""
    roots = [model for model in models.values() if isinstance(model, nn.Module)]
    return [(module, module.training) for root in roots for module in root.modules()]


def device_of(model: Encoder | ByPosition, otherwise: torch.device) -> torch.device:
    """Return the device of a model's parameters, or of its activations by position; ``otherwise`` if it has neither."""
    if isinstance(model, ByPosition):
        return model.device
    parameters = model.parameters() if isinstance(model, nn.Module) else iter(())
    return next((parameter.device for parameter in parameters), otherwise)
