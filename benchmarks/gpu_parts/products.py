"""Part "products": the three sparse products against the dense ones they replace, and where dense becomes faster.

For each number of latents and of active latents a row. The codes are random: every latent has about the same number of
entries. Dense products get dense codes; the time to make them, and to order the stored entries by latent, is told
apart. All in float32; the dense products in bfloat16 too, which an autocast could use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from gpu_parts.bench import Bench, Case, Line, median, told
from gpu_parts.models import random_codes
from monoloss import SparseActivations
from monoloss.benchmark.measure import random_rows
from monoloss.sparse.products import codes_matmul, codes_t_matmul, sampled_matmul

DECODE, TRANSPOSED, SAMPLED = "codes @ dense", "codes^T @ dense", "sampled"
PRODUCTS = (DECODE, TRANSPOSED, SAMPLED)
TOLERANCE = 1e-5  # norm of the difference over the norm


def cases(bench: Bench) -> dict[str, Case]:
    """Return the cases of this part by name."""
    return {f"{m} latents": partial(_latents, bench, m) for m in bench.sizes.product_latents}


@torch.no_grad()
def _latents(bench: Bench, n_latents: int, deadline: float) -> Line:
    """Assert equal products for each number of active latents, then time all of them; find the crossovers."""
    sizes = bench.sizes
    rows = random_rows(sizes.product_rows, sizes.width, 0).to(bench.device)
    weight = torch.randn(n_latents, sizes.width, device=bench.device)
    codes = {k: random_codes(len(rows), n_latents, k, bench.device) for k in sizes.product_ks}
    runs: dict[str, Callable[[], object]] = {}
    failed: Line = {}
    with told(failed, "dense", bench):
        last = next(reversed(codes.values()))
        dense = last.to_dense()
        runs |= {f"dense, {name}": run for name, run in _dense(dense, rows, weight).items()}
        lowered = _dense(dense.bfloat16(), rows.bfloat16(), weight.bfloat16())
        runs |= {f"dense in bfloat16, {name}": run for name, run in lowered.items()}
        runs["making dense codes"] = last.to_dense
    for k, each in codes.items():
        products = _sparse(each, rows, weight)
        if not failed:
            assert_equal(each, products, _dense(each.to_dense(), rows, weight))
        runs |= {f"{k} active, {name}": run for name, run in products.items()}
        runs[f"{k} active, order by latent"] = partial(_ordered, each)
    times = bench.times(runs, deadline)
    return {
        **failed,
        "times": times,
        "dense_is_faster_from_share": {
            name: crossover(
                [k / n_latents for k in codes],
                [median(times, f"{k} active, {name}") for k in codes],
                median(times, f"dense, {name}") if f"dense, {name}" in times else None,
            )
            for name in PRODUCTS
        },
    }


def _sparse(codes: SparseActivations, rows: Tensor, weight: Tensor) -> dict[str, Callable[[], Tensor]]:
    return {
        DECODE: partial(codes_matmul, codes, weight),
        TRANSPOSED: partial(codes_t_matmul, codes, rows),
        SAMPLED: partial(sampled_matmul, codes, rows, weight),
    }


def _dense(codes: Tensor, rows: Tensor, weight: Tensor) -> dict[str, Callable[[], Tensor]]:
    return {
        DECODE: lambda: codes @ weight,
        TRANSPOSED: lambda: codes.t() @ rows,
        SAMPLED: lambda: rows @ weight.t(),
    }


def _ordered(codes: SparseActivations) -> object:
    """Order the entries by latent, as the first product of new codes does."""
    return SparseActivations(codes.values, codes.indices, codes.n_latents, check=False).by_latent


def assert_equal(
    codes: SparseActivations, sparse: dict[str, Callable[[], Tensor]], dense: dict[str, Callable[[], Tensor]]
) -> None:
    """Assert that sparse and dense products agree; the sampled one at the stored entries."""
    for name, run in sparse.items():
        expected = dense[name]()
        if name == SAMPLED:
            expected = expected[codes.rows, codes.flat_indices]
        is_off = float((run() - expected).norm() / expected.norm())
        assert is_off <= TOLERANCE, f"{name} with {codes!r} differs by {is_off:.1e}"


def crossover(shares: Sequence[float], seconds: Sequence[float | None], dense: float | None) -> Line:
    """Return the share of stored entries from which the dense product is faster, with the shares it lies between.

    Between two measured shares the time is taken as a power of the share.

    Args:
        shares: measured shares, rising.
        seconds: times of the sparse product at these shares, None where not measured.
        dense: time of the dense product, None where not measured.
    """
    measured = [(share, each) for share, each in zip(shares, seconds, strict=True) if each is not None]
    if dense is None or not measured:
        return {"share": None, "because": "not measured"}
    below: tuple[float, float] | None = None
    for share, each in measured:
        if each > dense:
            if below is None:
                return {"share": None, "because": f"dense is faster at all shares from {share:.2g}"}
            power = math.log(each / below[1]) / math.log(share / below[0])
            return {"share": below[0] * (dense / below[1]) ** (1 / power), "between": [below[0], share]}
        below = share, each
    return {"share": None, "because": f"sparse is faster at all shares to {measured[-1][0]:.2g}"}
