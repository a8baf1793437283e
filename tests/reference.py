"""What the library must compute, written once more from the papers: NumPy, float64, loops.

Nothing of the library is imported here. Plain and slow on purpose: the score is the definition over pairs of rows, not
the linear identity, the top-k codes come from a full sort, purity and R2 from loops over latents and dimensions.
Arrays of any float type (or tensors on the CPU) come in and are lifted to float64 first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def _float64(values: Any) -> Array:
    """Any array or CPU tensor (bfloat16 and half too) as a float64 array."""
    if hasattr(values, "detach"):
        values = values.detach().double().numpy()
    return np.asarray(values, dtype=np.float64)


def unit_rows(embeddings: Any, center: Any = None) -> Array:
    """h_i = (e_i - center) / |e_i - center|."""
    rows = _float64(embeddings)
    if center is not None:
        rows = rows - _float64(center)
    return np.stack([row / np.sqrt(np.sum(row * row)) for row in rows]) if len(rows) else rows


# ---------------------------------------------------------------------- score and loss


def min_max_scaled(activations: Any) -> Array:
    """a = (z - min) / (max - min) of each latent over the rows; a latent without range becomes all zero."""
    z = _float64(activations)
    scaled = np.zeros_like(z)
    for latent in range(z.shape[1]):
        column = z[:, latent]
        if len(column) and column.max() > column.min():
            scaled[:, latent] = (column - column.min()) / (column.max() - column.min())
    return scaled


def mono_score_pairwise(embeddings: Any, activations: Any, center: Any = None) -> Array:
    """The mean cosine over all pairs i < l, weighted by a_i a_l; NaN with fewer than two rows of positive weight.

    The loop over i takes all partners l > i at once: O(n^2 (d + m)).
    """
    h, a = unit_rows(embeddings, center), min_max_scaled(activations)
    n_rows, n_latents = a.shape
    similarity, weight = np.zeros(n_latents), np.zeros(n_latents)
    for i in range(n_rows - 1):
        cosines = h[i + 1 :] @ h[i]
        pair_weights = a[i] * a[i + 1 :]  # (partners, m)
        similarity += cosines @ pair_weights
        weight += pair_weights.sum(axis=0)
    defined = (a > 0).sum(axis=0) >= 2
    return np.array([similarity[j] / weight[j] if defined[j] else np.nan for j in range(n_latents)])


def mono_loss(embeddings: Any, activations: Any, center: Any = None) -> float:
    """1 - the mean score over the latents that are defined; 1 where none is."""
    scores = mono_score_pairwise(embeddings, activations, center)
    defined = scores[~np.isnan(scores)]
    return float(1.0 - defined.mean()) if len(defined) else 1.0


def chance_pairwise(embeddings: Any, center: Any = None) -> float:
    """The mean cosine over all pairs i < l, unweighted; NaN with fewer than two rows."""
    h = unit_rows(embeddings, center)
    n_rows = len(h)
    if n_rows < 2:
        return float("nan")
    total = sum(float((h[i + 1 :] @ h[i]).sum()) for i in range(n_rows - 1))
    return total / (n_rows * (n_rows - 1) / 2)


def lift(score: Any, chance: float) -> Array:
    """(score - chance) / (1 - chance): 0 for a random latent, 1 for a perfect one; NaN where all rows are alike."""
    s = _float64(score)
    return (s - chance) / (1.0 - chance) if chance != 1.0 else np.full_like(s, np.nan)


def n_eff(activations: Any) -> Array:
    """(sum a)^2 / sum a^2 with a = z - min, the effective number of rows behind a latent; NaN without range."""
    z = _float64(activations)
    result = np.full(z.shape[1], np.nan)
    for latent in range(z.shape[1]):
        if len(z):
            a = z[:, latent] - z[:, latent].min()
            if a.max() > 0:
                a = a / a.max()  # the scale cancels; keeps tiny activations from underflowing
                result[latent] = a.sum() ** 2 / (a * a).sum()
    return result


def memory_scores(batches: Sequence[tuple[Any, Any]], memory: float, center: Any = None) -> Array:
    """Scores after the last batch from sums about 0 that fade by `memory` each batch; NaN unless u^2 >= 2 v.

    T <- memory T + (sum z, sum z^2, sum z h) over the batch; score = (|w|^2 - v) / (u^2 - v).
    """
    n_latents, width = _float64(batches[0][1]).shape[1], _float64(batches[0][0]).shape[1]
    u, v, w = np.zeros(n_latents), np.zeros(n_latents), np.zeros((n_latents, width))
    for embeddings, activations in batches:
        u, v, w = memory * u, memory * v, memory * w
        for h_row, z_row in zip(unit_rows(embeddings, center), _float64(activations), strict=True):
            u += z_row
            v += z_row**2
            w += np.outer(z_row, h_row)
    scores = np.full(n_latents, np.nan)
    for latent in range(n_latents):
        if u[latent] > 0 and u[latent] ** 2 >= 2 * v[latent]:
            scores[latent] = (w[latent] @ w[latent] - v[latent]) / (u[latent] ** 2 - v[latent])
    return scores


# ---------------------------------------------------------------------- purity


def _classes_of_rows(labels: Any) -> list[list[int]]:
    """The classes of each row, from (n,) integers or an (n, c) boolean table."""
    table = np.asarray(labels)
    if table.ndim == 1:
        return [[int(label)] for label in table]
    return [[int(c) for c in np.flatnonzero(row)] for row in table]


def _mean(values: Iterable[float]) -> float:
    kept = list(values)
    return float(np.mean(kept)) if kept else float("nan")


def class_purity(activations: Any, labels: Any, n_classes: int | None = None) -> dict[str, Any]:
    """Share of a latent's active rows (z > 0, with at least one label) that carry its most frequent class.

    binary: rows count 1; weighted: rows count z, in the frequency of the classes too. A row of several classes counts
    once below the line. NaN where a latent has no such row, which is then left out of every mean. `mass_*` are the
    means weighted by the latents' masses (sum of z over the same rows).
    """
    z, classes = _float64(activations), _classes_of_rows(labels)
    table = np.asarray(labels)
    if n_classes is None:
        n_classes = int(table.max()) + 1 if table.ndim == 1 else table.shape[1]
    n_latents = z.shape[1]
    binary, weighted, mass = (np.full(n_latents, np.nan) for _ in range(3))
    for latent in range(n_latents):
        rows_of_class, mass_of_class = np.zeros(n_classes), np.zeros(n_classes)
        n_active, total = 0, 0.0
        for i, row_classes in enumerate(classes):
            if z[i, latent] > 0 and row_classes:
                n_active += 1
                total += z[i, latent]
                for c in row_classes:
                    rows_of_class[c] += 1
                    mass_of_class[c] += z[i, latent]
        if n_active:
            binary[latent], weighted[latent] = rows_of_class.max() / n_active, mass_of_class.max() / total
            mass[latent] = total
    active = [j for j in range(n_latents) if not np.isnan(mass[j])]
    whole = sum(mass[j] for j in active)
    return {
        "binary": binary,
        "weighted": weighted,
        "mean_binary": _mean(binary[j] for j in active),
        "mean_weighted": _mean(weighted[j] for j in active),
        "mass_binary": float(sum(mass[j] * binary[j] for j in active) / whole) if active else float("nan"),
        "mass_weighted": float(sum(mass[j] * weighted[j] for j in active) / whole) if active else float("nan"),
    }


# ---------------------------------------------------------------------- reconstruction, sparsity


def r2_uniform(inputs: Any, reconstruction: Any) -> float:
    """1 - squared error / variation about the mean of each input dimension, averaged over those that vary."""
    x, y = _float64(inputs), _float64(reconstruction)
    ratios = []
    for dimension in range(x.shape[1]):
        column = x[:, dimension]
        if len(column) and column.max() > column.min():
            error = np.sum((column - y[:, dimension]) ** 2)
            ratios.append(1.0 - error / np.sum((column - column.mean()) ** 2))
    return _mean(ratios)


def explained_variance(inputs: Any, reconstruction: Any) -> float:
    """1 - squared error / variation about the mean, both summed over all dimensions first; NaN without variation."""
    x, y = _float64(inputs), _float64(reconstruction)
    if not len(x) or (x == x[0]).all():
        return float("nan")
    return float(1.0 - np.sum((x - y) ** 2) / np.sum((x - x.mean(axis=0)) ** 2))


def nmse(inputs: Any, reconstruction: Any) -> float:
    """The mean over rows of |x - x'|^2 / |x|^2."""
    x, y = _float64(inputs), _float64(reconstruction)
    return _mean(np.sum((row - got) ** 2) / np.sum(row**2) for row, got in zip(x, y, strict=True))


def mse(inputs: Any, reconstruction: Any) -> float:
    """The mean over rows and input dimensions of (x - x')^2."""
    x, y = _float64(inputs), _float64(reconstruction)
    return _mean((a - b) ** 2 for a, b in zip(x.ravel(), y.ravel(), strict=True))


def l0(activations: Any) -> float:
    """The mean over rows of the number of latents with z > 0."""
    return _mean(sum(1 for value in row if value > 0) for row in _float64(activations))


def top_k_codes(pre_activations: Any, k: int) -> Array:
    """Dense codes: the `k` largest of each row through a ReLU, zero elsewhere; of ties the lowest latent."""
    pre = _float64(pre_activations)
    codes = np.zeros_like(pre)
    for i, row in enumerate(pre):
        order = sorted(range(len(row)), key=lambda j, row=row: (-row[j], j))
        for j in order[:k]:
            codes[i, j] = max(row[j], 0.0)
    return codes


def batch_top_k_codes(pre_activations: Any, k: int) -> Array:
    """Dense codes: the `k n` largest of the batch through a ReLU; of ties the lowest row, then the lowest latent."""
    pre = _float64(pre_activations)
    codes = np.zeros_like(pre)
    entries = [(-max(float(pre[i, j]), 0.0), i, j) for i in range(pre.shape[0]) for j in range(pre.shape[1])]
    for negated, i, j in sorted(entries)[: k * pre.shape[0]]:
        codes[i, j] = -negated
    return codes
