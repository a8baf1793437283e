"""Class purity: the share of a latent's active rows that belong to its most frequent class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from monoloss.checks.labels import check_label_kind, check_labels
from monoloss.errors import InputError
from monoloss.functional.sparsity import ActiveEntries, active_entries, check_activations, count_not_finite
from monoloss.precision import sums_device
from monoloss.sparse import Activations, SparseActivations
from monoloss.sparse.products import codes_t_matmul
from monoloss.waiting import may_branch

_BLOCK_OF_PRODUCTS = 2**24  # dense activations in one block of a GPU: 128 MB in float64
_BLOCK_ENTRIES = 2**18  # dense activations in one block of latents, so that the sums of the block stay in the cache


@dataclass(frozen=True)
class PurityCounts:
    """Sums over rows from which class purity follows; the counts of two parts of the rows add up. All float64.

    A row is active for a latent if ``z > 0`` and the row has at least one label.

    Attributes:
        rows: active rows of each class, ``(m, c)``; a row of several classes counts in each.
        mass: sum of ``z`` over the same rows, ``(m, c)``.
        n_active: active rows, each once, ``(m,)``.
        active_mass: sum of ``z`` over the active rows, each once, ``(m,)``.
        n_not_finite: number of NaN and infinite activations, scalar; above 0 the other sums are of no use.
        n_outside: number of labels out of range, scalar, likewise; 0 on a CPU, which refuses them.
    """

    rows: Float[Tensor, "m c"]
    mass: Float[Tensor, "m c"]
    n_active: Float[Tensor, " m"]
    active_mass: Float[Tensor, " m"]
    n_not_finite: Float[Tensor, ""]
    n_outside: Float[Tensor, ""]

    @classmethod
    def zeros(cls, n_latents: int, n_classes: int, device: torch.device | None = None) -> PurityCounts:
        """Return the counts of no rows, the neutral element of ``+``. Memory 16 ``m c`` bytes."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        rows, mass = zeros(n_latents, n_classes), zeros(n_latents, n_classes)
        n_active, active_mass = zeros(n_latents), zeros(n_latents)
        return cls(rows, mass, n_active, active_mass, n_not_finite=zeros(), n_outside=zeros())

    def __add__(self, other: PurityCounts) -> PurityCounts:
        if self.rows.shape != other.rows.shape:
            got, expected = f"{tuple(other.rows.shape)} latents and classes", f"{tuple(self.rows.shape)} in both"
            raise InputError("counts", got, expected)
        return PurityCounts(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})


@dataclass(frozen=True)
class ClassPurityResult:
    """Class purity of each latent and its means; all float64 but ``dominant_class``.

    Attributes:
        binary: share of a latent's active rows that carry its most frequent class, ``(m,)`` in (0, 1]; NaN for a latent
            without active rows.
        weighted: the same with rows counting ``z`` instead of 1, also in the choice of the class, ``(m,)``.
        dominant_class: the most frequent class by rows, the lowest of ties, ``(m,)`` int64; -1 without an active row.
        n_active: number of active rows with at least one label, ``(m,)``.
        mass: sum of ``z`` over these rows, ``(m,)``.
        mean_binary: mean of ``binary`` over the latents with an active row (the paper's); NaN without such latents.
        mean_weighted: mean of ``weighted`` over the same latents.
        mass_weighted_binary: mean of ``binary`` weighted by ``mass``, which rare latents cannot inflate; NaN if all
            masses are 0.
        mass_weighted_weighted: mean of ``weighted`` weighted by ``mass``.
        n_defined: number of latents with an active row, scalar.
    """

    binary: Float[Tensor, " m"]
    weighted: Float[Tensor, " m"]
    dominant_class: Int[Tensor, " m"]
    n_active: Float[Tensor, " m"]
    mass: Float[Tensor, " m"]
    mean_binary: Float[Tensor, ""]
    mean_weighted: Float[Tensor, ""]
    mass_weighted_binary: Float[Tensor, ""]
    mass_weighted_weighted: Float[Tensor, ""]
    n_defined: Int[Tensor, ""]


def class_purity(
    activations: Activations,
    labels: Integer[Tensor, " n"] | Bool[Tensor, "n c"],
    n_classes: int | None = None,
) -> ClassPurityResult:
    """Share of a latent's active rows (``z > 0``) that belong to its most frequent class, for each latent.

    With ``A_j`` the labelled rows with ``z_ij > 0``: ``binary_j = max_c |A_j and class c| / |A_j|``, ``weighted_j`` the
    same with rows counting ``z_ij``. A row of several classes counts once in the denominator; rows without a label are
    left out of everything, the masses too.

    Exact, in float64, one pass. Cost O(n m) dense, O(entries) sparse, times the labels of a row; memory O(m c).

    Args:
        activations: activations ``(n, m)`` of any sign, dense or sparse.
        labels: ``(n,)`` integers in ``[0, n_classes)``, or ``(n, n_classes)`` bool: any number of classes a row.
        n_classes: number of classes; None for the largest label + 1, or the width of multi-label ``labels``.

    Returns:
        Purity of each latent, 1 where all its active rows share a class, NaN where it is never active, and means over
        the latents that are active.

    Raises:
        InputError: shapes, dtypes or devices that do not fit, a label out of range, an activation that is not finite,
            no rows and no ``n_classes``.

    Source:
        arXiv 2602.12403, class purity. Ours: the mass-weighted means and the multi-label form.

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [5.0, 0.0], [2.0, 0.0]])
        >>> purity = class_purity(z, torch.tensor([0, 1, 0]))
        >>> purity.binary, purity.weighted
        (tensor([0.6667,    nan], dtype=torch.float64), tensor([0.6250,    nan], dtype=torch.float64))
    """
    if n_classes is None:
        n_classes = _count_classes(labels)
    return purity_from_counts(class_counts(activations, labels, n_classes))


def _count_classes(labels: Tensor) -> int:
    """Return the width of multi-label ``labels``, else the largest label + 1."""
    check_label_kind(labels)
    if labels.ndim == 2:
        return labels.shape[1]
    if labels.shape[0] == 0:
        raise InputError("n_classes", "None and no rows", "the number of classes")
    return max(int(labels.max()) + 1, 1)


@torch.no_grad()
def class_counts(
    activations: Activations,
    labels: Integer[Tensor, " n"] | Bool[Tensor, "n c"],
    n_classes: int,
    *,
    into: PurityCounts | None = None,
) -> PurityCounts:
    """Compute the sums behind class purity over one batch. Cost as in ``class_purity``.

    Args:
        activations: activations ``(n, m)`` of any sign, dense or sparse.
        labels: ``(n,)`` integers in ``[0, n_classes)``, or ``(n, n_classes)`` bool.
        n_classes: number of classes, at least 1.
        into: counts to which the batch is added in place: a batch then costs O(entries) instead of O(m c).

    Returns:
        ``into`` if given, else new counts on ``sums_device``.

    Raises:
        InputError: as ``class_purity``, before ``into`` is changed; also ``into`` of another size. On a GPU activations
            that are not finite and labels out of range are only counted, and ``purity_from_counts`` raises.
    """
    check_activations(activations)
    check_labels(labels, n_classes, activations.shape[0], activations.device)
    n_latents, sums_dev = activations.shape[1], sums_device(activations.device)
    if into is not None and into.rows.shape != (n_latents, n_classes):
        raise InputError("into", f"counts of shape {tuple(into.rows.shape)}", f"shape {(n_latents, n_classes)}")
    n_not_finite = count_not_finite(activations)
    counts = PurityCounts.zeros(n_latents, n_classes, sums_dev) if into is None else into
    counts.n_not_finite.add_(n_not_finite)
    if not may_branch(labels.device):
        if labels.ndim == 2:
            _count_by_products(activations, labels, counts)
            return counts
        labels = labels.long()
        counts.n_outside.add_(((labels < 0) | (labels >= n_classes)).sum())
        labels = labels.clamp(0, n_classes - 1)
    table = _label_table(labels.to(sums_dev))
    if isinstance(activations, SparseActivations):
        _count_sparse(activations, table, counts)
    else:
        _count_dense(activations, table, counts)
    return counts


def _count_by_products(activations: Activations, labels: Tensor, counts: PurityCounts) -> None:
    """Add a batch with several labels a row to ``counts`` in place, by products: O(m c) and more, but no wait."""
    of_class = torch.cat([labels, labels.any(1)[:, None]], 1).double()
    codes = activations if isinstance(activations, SparseActivations) else None
    n_latents = counts.rows.shape[0]
    step = n_latents if codes is not None else max(1, _BLOCK_OF_PRODUCTS // max(1, len(labels)))
    for start in range(0, n_latents, step):
        latents = slice(start, start + step)
        part = activations.values if isinstance(activations, SparseActivations) else activations[:, latents]
        values = part.detach().double()
        active = values > 0
        for class_sums, sums, weights in (
            (counts.rows, counts.n_active, active.double()),
            (counts.mass, counts.active_mass, torch.where(active, values, 0.0)),
        ):
            product = weights.t() @ of_class if codes is None else codes_t_matmul(codes.with_values(weights), of_class)
            class_sums[latents].add_(product[:, :-1])
            sums[latents].add_(product[:, -1])


def _count_sparse(activations: SparseActivations, table: _LabelTable, counts: PurityCounts) -> None:
    """Add the active entries of sparse activations to ``counts`` in place."""
    n_classes = counts.rows.shape[1]
    rows_of_class, mass_of_class = counts.rows.view(-1), counts.mass.view(-1)
    for entries in active_entries(activations):
        latents, values = entries.latents, entries.values
        if table.one_class:
            classes, weights, labelled = table.classes[entries.rows], values, (values > 0).double()
            each = labelled
        else:
            n_labels = table.n_labels[entries.rows]
            labelled = (n_labels > 0).double()
            copies, classes = _classes_of_entries(entries, n_labels, table)
            latents, weights = latents[copies], values[copies]
            each = torch.ones_like(weights)
            values = values * labelled
        counts.n_active.index_add_(0, entries.latents, labelled)
        counts.active_mass.index_add_(0, entries.latents, values)
        cells = latents * n_classes + classes
        rows_of_class.scatter_add_(0, cells, each)
        mass_of_class.scatter_add_(0, cells, weights)


def _count_dense(activations: Tensor, table: _LabelTable, counts: PurityCounts) -> None:
    """Add dense activations to ``counts`` in place, block by block of latents; terms in the order of _count_sparse."""
    sums_dev, labelled = counts.rows.device, table.n_labels > 0
    copies = torch.arange(len(labelled), device=sums_dev)
    if not table.one_class:
        copies = copies.repeat_interleave(table.n_labels)
    n_latents = max(1, _BLOCK_ENTRIES // max(1, len(copies)))
    for start in range(0, activations.shape[1], n_latents):
        latents = slice(start, start + n_latents)
        z = activations.detach()[:, latents].to(sums_dev).double().clamp(min=0.0) * labelled[:, None]
        active = (z > 0).double()
        counts.n_active[latents] += active.sum(0)
        counts.active_mass[None, latents].index_add_(0, torch.zeros_like(labelled, dtype=torch.int64), z)
        for class_sums, row_values in ((counts.rows, active), (counts.mass, z)):
            label_values = row_values.t() if table.one_class else row_values.t()[:, copies]  # a row once for each label
            class_sums[latents].index_add_(1, table.classes, label_values)


@torch.no_grad()
def purity_from_counts(counts: PurityCounts) -> ClassPurityResult:
    """Compute class purity from the sums over all rows. Cost O(m c).

    Raises:
        InputError: some activations were not finite; on a GPU, some labels were out of range.
    """
    if counts.n_outside > 0:
        expected = f"labels from 0 to {counts.rows.shape[1] - 1}"
        raise InputError("labels", f"{int(counts.n_outside)} outside", expected)
    if counts.n_not_finite > 0:
        raise InputError("activations", f"{int(counts.n_not_finite)} that are NaN or infinite", "finite numbers")
    n_active, mass = counts.n_active, counts.active_mass
    active = n_active > 0
    most_rows, dominant = counts.rows.max(1).values, counts.rows.argmax(1)
    binary = most_rows / n_active  # 0 / 0 = NaN without an active row
    weighted = (counts.mass.max(1).values / mass).clamp(max=1.0)  # the two sums may round apart
    return _with_means(binary, weighted, torch.where(active, dominant, -1), n_active, mass)


def join_latents(parts: Sequence[ClassPurityResult]) -> ClassPurityResult:
    """Concatenate the results of several groups of latents over the same rows; means are over the latents of all."""
    names = ("binary", "weighted", "dominant_class", "n_active", "mass")
    return _with_means(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def _with_means(
    binary: Tensor, weighted: Tensor, dominant: Tensor, n_active: Tensor, mass: Tensor
) -> ClassPurityResult:
    """Build the result from the numbers of each latent, with the means over the latents with an active row."""
    active = n_active > 0
    n_defined, total_mass = active.sum(), mass.sum()
    active_binary, active_weighted = (torch.where(active, purity, 0.0) for purity in (binary, weighted))
    return ClassPurityResult(
        binary=binary,
        weighted=weighted,
        dominant_class=dominant,
        n_active=n_active,
        mass=mass,
        mean_binary=active_binary.sum() / n_defined,
        mean_weighted=active_weighted.sum() / n_defined,
        mass_weighted_binary=(active_binary * mass).sum() / total_mass,
        mass_weighted_weighted=(active_weighted * mass).sum() / total_mass,
        n_defined=n_defined,
    )


class _LabelTable(NamedTuple):
    """The classes of all rows in one list: row ``i`` has ``classes[first[i] : first[i] + n_labels[i]]``."""

    classes: Tensor
    n_labels: Tensor
    first: Tensor
    one_class: bool
    """Whether every row has exactly one class."""


def _label_table(labels: Tensor) -> _LabelTable:
    if labels.ndim == 1:
        one_each = torch.ones_like(labels, dtype=torch.int64)
        return _LabelTable(labels.long(), one_each, one_each.cumsum(0) - 1, one_class=True)
    classes, n_labels = labels.nonzero(as_tuple=True)[1], labels.sum(1)
    return _LabelTable(classes, n_labels, n_labels.cumsum(0) - n_labels, one_class=bool((n_labels == 1).all()))


def _classes_of_entries(entries: ActiveEntries, n_labels: Tensor, table: _LabelTable) -> tuple[Tensor, Tensor]:
    """Return one pair for each entry and each class of its row: the positions of the entries, and the classes.

    ``n_labels``: number of classes of each entry's row.
    """
    ends = n_labels.cumsum(0)
    copies = torch.arange(n_labels.shape[0], device=n_labels.device).repeat_interleave(n_labels)
    nth_class = torch.arange(copies.shape[0], device=copies.device) - (ends - n_labels)[copies]
    return copies, table.classes[table.first[entries.rows[copies]] + nth_class]
