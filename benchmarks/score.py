"""Time the score of a TopK SAE's latents: ours, the paper's two dense passes, pairs of rows; growth with the rows.

    python benchmarks/score.py [--rounds 11]

Asserts first that all scores of the same codes agree. Opponents take turns in one run, after a round that is not timed;
every second round is in reverse order; all sums are allocated before. The rows are random, in memory. The two dense
passes run in two forms: plain, with a new tensor for each step and the forward pass of training code in each pass
(with error, L1, L0 and the counter of inactive samples), as in much research code; and lean, with only encoder, top-k
and decoder, and as few tensors as possible. Two cores need about six minutes.
"""

from __future__ import annotations

import argparse

import torch
from machine import progress_of_runs, write_result
from targets import Target, print_targets
from torch import Tensor

from monoloss import SparseActivations
from monoloss.benchmark.dense import two_pass_score, two_pass_score_of_sae
from monoloss.benchmark.measure import Timing, quadratic_fit, random_rows, time_in_turn
from monoloss.benchmark.pairwise import pairwise_score, pairwise_score_as_product
from monoloss.benchmark.run import OURS as WAY_OF_OURS
from monoloss.benchmark.run import TOLERANCE, Sizes, Ways

FLOOR, OURS = "floor: encoder product + top-k", "ours"
LEAN, PLAIN = "two dense passes, lean", "two dense passes, plain"
OURS_GIVEN = "ours, codes given"
LEAN_GIVEN, PLAIN_GIVEN = "two dense passes, lean, codes given", "two dense passes, plain, codes given"
PAIRWISE, PRODUCT = "pairwise, codes given", "pairwise as product, codes given"
N_ROWS, GROWTH, PAIRS, BEYOND = 8192, (2**14, 2**17), (2**9, 2**10, 2**11), (2**13, 2**16)


def main() -> None:
    """Assert equal scores, measure and print the times, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11, help="timed rounds; growth and pairs take three at most")
    rounds = parser.parse_args().rounds
    sizes = Sizes()
    rows, ways = random_rows(N_ROWS, sizes.width, sizes.seed), Ways(sizes)
    with torch.no_grad():
        difference = ways.check(rows[:512])
        print(f"scores agree within {difference:.1e}")
        timings = passes(rows, ways, rounds)
        growth = of_growth(rows, ways, min(rounds, 3))
        pairs = of_pairs(rows, ways, min(rounds, 3))
    median = {name: timing.median for name, timing in timings.items()}
    per_row = [timing.median / n for n, timing in growth.items()]
    targets = [
        *(Target(f"8192 rows: {name} / ours", median[name] / median[OURS], at_least=5) for name in (PLAIN, LEAN)),
        Target("8192 rows: ours / floor", median[OURS] / median[FLOOR], at_most=1.10),
        *(
            Target(f"{name} / ours", median[name] / median[OURS_GIVEN], at_least=15)
            for name in (PLAIN_GIVEN, LEAN_GIVEN)
        ),
        Target("time per row, slower / faster of 2^14 and 2^17 rows", max(per_row) / min(per_row), at_most=1.15),
    ]
    result = {
        "sizes": {"rows": N_ROWS, "width": sizes.width, "n_latents": sizes.n_latents, "k": sizes.k},
        "largest_difference": difference,
        "rounds": rounds,
        "timings": {name: timing.as_dict() for name, timing in timings.items()},
        "growth": {str(n): {**timing.as_dict(), "seconds_a_row": timing.median / n} for n, timing in growth.items()},
        "pairs": pairs,
        "targets": print_targets(targets),
    }
    write_result("score", result)


def passes(rows: Tensor, ways: Ways, rounds: int) -> dict[str, Timing]:
    """Time the way from rows to scores, and from codes to scores, on 8192 rows."""
    batches = rows.split(ways.batch_size)
    weight, bias = ways.sae.encoder_weight.detach(), ways.sae.encoder_bias
    assert bias is not None
    codes = [ways.sae.encode(batch) for batch in batches]
    dense = [part.to_dense() for part in codes]

    def floor() -> None:
        for batch in batches:
            torch.addmm(bias, batch, weight).topk(ways.sae.config.k, dim=1, sorted=False)

    def ours_given() -> Tensor:
        ways.metric.reset()
        for batch, part in zip(batches, codes, strict=True):  # a new object, without what an earlier round has cached
            fresh = SparseActivations(part.values, part.indices, part.n_latents, check=False)
            ways.metric.update(batch, fresh)
        return ways.metric.compute()

    opponents = {
        FLOOR: floor,
        OURS: ways.runs(rows)[WAY_OF_OURS],
        LEAN: lambda: two_pass_score_of_sae(ways.dense, batches, ways.sums),
        PLAIN: lambda: two_pass_score_of_sae(ways.dense, batches, ways.sums, lean=False),
        OURS_GIVEN: ours_given,
        LEAN_GIVEN: lambda: two_pass_score(batches, lambda i: dense[i], ways.sums),
        PLAIN_GIVEN: lambda: two_pass_score(batches, lambda i: dense[i], ways.sums, in_place=False),
    }
    expected = ours_given()
    for name in (OURS, LEAN, PLAIN, LEAN_GIVEN, PLAIN_GIVEN):
        assert_close(name, opponents[name](), expected)
    with progress_of_runs((rounds + 1) * len(opponents)) as advance:
        timings = time_in_turn(opponents, rounds, advance=advance)
    print(f"\n{N_ROWS} rows")
    for name, timing in timings.items():
        print(f"  {name:38} median {timing.median:7.3f} s   minimum {timing.minimum:7.3f} s")
    return timings


def assert_close(name: str, found: Tensor, expected: Tensor) -> None:
    """Assert equal scores, but for a few latents whose codes differ because nearly equal activations were selected."""
    assert torch.equal(found.isnan(), expected.isnan()), name
    far = (found.double() - expected).abs().nan_to_num() > TOLERANCE
    assert far.double().mean() <= 1e-2, (name, int(far.sum()))


def of_growth(rows: Tensor, ways: Ways, rounds: int) -> dict[int, Timing]:
    """Time ours for more rows than are in memory, by repeating the same 8192 rows."""

    def run(n: int) -> None:
        ways.metric.reset()
        for _ in range(n // N_ROWS):
            for batch in rows.split(ways.batch_size):
                ways.metric.update(batch, ways.sae.encode(batch))
        ways.metric.compute()

    with progress_of_runs(rounds * len(GROWTH)) as advance:
        named = {str(n): (lambda n=n: run(n)) for n in GROWTH}
        timings = time_in_turn(named, rounds, warm=False, advance=advance)
    print("\ngrowth of ours")
    for n, timing in timings.items():
        print(f"  {n:>7} rows: median {timing.median:7.2f} s, {1e6 * timing.median / int(n):6.1f} us a row")
    return {int(n): timing for n, timing in timings.items()}


def of_pairs(rows: Tensor, ways: Ways, rounds: int) -> dict[str, dict[str, object]]:
    """Time both pairwise forms for few rows, and extrapolate them by a quadratic to more."""
    dense = ways.sae.encode(rows[: max(PAIRS)]).to_dense()
    scores = {PAIRWISE: pairwise_score, PRODUCT: pairwise_score_as_product}
    named = {(name, n): (lambda f=f, n=n: f(rows[:n], dense[:n])) for name, f in scores.items() for n in PAIRS}
    with progress_of_runs(rounds * len(named)) as advance:
        runs = {f"{name}, {n} rows": run for (name, n), run in named.items()}
        timings = dict(zip(named, time_in_turn(runs, rounds, warm=False, advance=advance).values(), strict=True))
    found: dict[str, dict[str, object]] = {}
    print("\npairs (~ not measured: a quadratic through the measured times)")
    for name in scores:
        fit = quadratic_fit(PAIRS, [timings[name, n].median for n in PAIRS])
        measured = {n: timings[name, n] for n in PAIRS}
        times = [f"{n}: {timing.median:.2f} s" for n, timing in measured.items()]
        times += [f"{n}: ~{fit(n):.0f} s" for n in BEYOND]
        print(f"  {name:38} " + ", ".join(times))
        found[name] = {
            "measured": {str(n): timing.as_dict() for n, timing in measured.items()},
            "quadratic_fit": fit._asdict(),
            "extrapolated": {str(n): {"seconds": fit(n)} for n in BEYOND},
        }
    return found


if __name__ == "__main__":
    main()
