"""The model card (README.md) of a saved SAE: its configuration, how to load it, and its measures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from monoloss.checks import check_type
from monoloss.errors import InputError

_LOAD = """## How to load it

```python
from monoloss import SparseAutoencoder
sae = SparseAutoencoder.from_pretrained("FOLDER")  # this folder; from the Hub: "hf-hub:USER/NAME"
codes = sae.encode(embeddings)  # (n, {d_in}) -> sparse (n, {n_latents})
```
"""


def model_card_text(d_in: int, metadata: Mapping[str, object], evaluation: Mapping[str, float] | None) -> str:
    """Return the text of a model card, in Markdown without the YAML header.

    Args:
        d_in: width of the input rows.
        metadata: all that is recorded of the SAE, nested mappings; must have ``variant`` and ``n_latents``.
        evaluation: number of each measure by name, NaN where undefined; None leaves the section out.

    Raises:
        InputError: ``evaluation`` is no mapping of names to numbers.
    """
    variant, n_latents = metadata["variant"], metadata["n_latents"]
    parts = [
        f"# Sparse autoencoder: {variant}, {n_latents} latents on rows of width {d_in}\n",
        "It writes a row of embeddings as a few active latents and rebuilds the row from them; made with `monoloss`.\n",
        _LOAD.format(d_in=d_in, n_latents=n_latents),
        "## What it is\n",
        _table(("fact", "value"), _flat({"d_in": d_in, **metadata})),
    ]
    if evaluation is not None:
        check_type("evaluation", evaluation, Mapping, "a mapping of names to numbers, as Evaluation.summary")
        measures = ((str(name), _number(str(name), value)) for name, value in evaluation.items())
        parts += ["## Evaluation\n", _table(("measure", "value"), measures)]
    return "\n".join(parts)


def _flat(metadata: Mapping[str, object], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Yield the values of nested mappings as (dotted name, text); those that are None are left out."""
    for name, value in metadata.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", str(value)


def _number(name: str, value: object) -> str:
    """Format a measure: four significant digits, whole numbers without a point, NaN as "undefined"."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"evaluation.{name}", repr(value), "a number")
    if math.isnan(value):
        return "undefined"
    return str(int(value)) if math.isfinite(value) and value == int(value) else f"{value:.4g}"


def _table(head: tuple[str, str], rows: Iterable[tuple[str, str]]) -> str:
    """Return a Markdown table of two columns."""
    lines = [head, ("---", "---"), *rows]
    return "".join(f"| {_cell(name)} | {_cell(value)} |\n" for name, value in lines)


def _cell(text: str) -> str:
    """Put a text on one line and escape the column separator of Markdown."""
    return " ".join(text.split()).replace("|", "\\|")
