"""Time a training step of TopK and BatchTopK: ours and the paper's dense one, without and with MonoLoss, over pairs.

    python benchmarks/step.py [--rounds 11]

8192 latents, width 768, k = 64, batches of 2048; gradient clipped at 1, Adam (ours fused, the dense one with torch's
defaults), decoder gradient projected, rows normalised; equal initial weights and batches. Asserts first that losses and
gradients of a step agree. Opponents take turns, every second round in reverse order. The step with MonoLoss over pairs
runs once for each variant. Then MonoLoss alone is timed, forward and backward on the same codes: ours, dense, over
pairs. Two cores need about ten minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from machine import progress_of_runs, write_result
from targets import Target, print_targets
from torch import Tensor, nn

from monoloss import BatchTopKConfig, MonoLoss, SparseActivations, SparseAutoencoder, TopKConfig
from monoloss.benchmark.dense import ADAM_EPS, DenseSae, DenseTraining, dense_mono_loss
from monoloss.benchmark.measure import Timing, random_rows, time_in_turn
from monoloss.benchmark.pairwise import loss as loss_of
from monoloss.benchmark.pairwise import pairwise_loss, pairwise_score_as_product
from monoloss.functional.moments import unit_rows
from monoloss.sae.objectives import objective

D, M, K, N, N_BATCHES = 768, 8192, 64, 2048, 3
CONFIGS = {"TopK": TopKConfig("topk", M, K), "BatchTopK": BatchTopKConfig("batch_topk", M, K)}
WEIGHTS = {"TopK": 0.09, "BatchTopK": 3e-4}  # the paper's, on ImageNet with CLIP
LR, MEMORY = 1e-4, 0.9
_OFTEN = 4  # factor of the rounds for additional runs of our steps alone
OURS, OURS_MONO, OURS_MEMORY = "ours", "ours + MonoLoss", "ours + MonoLoss, memory"
DENSE, DENSE_MONO, DENSE_PAIRS = "dense", "dense + MonoLoss", "dense + MonoLoss over pairs"
ALONE, ALONE_DENSE, ALONE_PRODUCT, ALONE_PAIRS = "ours", "dense", "pairs as matrix product", "pairs"


class Training:
    """Our training step, with the calls of `train_saes`.

    Args:
        sae: the model.
        mono: MonoLoss, or None to train without it.
        mono_weight: factor of MonoLoss.
    """

    def __init__(self, sae: SparseAutoencoder, mono: MonoLoss | None, mono_weight: float) -> None:
        self.sae, self.mono, self.mono_weight = sae, mono, mono_weight
        self.adam = torch.optim.Adam(sae.parameters(), lr=LR, eps=ADAM_EPS, fused=True)

    def step(self, batch: Tensor) -> Tensor:
        """Train on one batch and return its loss; the clipped gradients stay on the parameters."""
        embeddings = unit_rows(batch)
        output = self.sae(batch)
        total = objective(self.sae, output).total
        if self.mono is not None:
            total = total + self.mono_weight * self.mono(embeddings, output.codes)
        self.sae.count_activity_(output.codes)
        self.adam.zero_grad()
        total.backward()
        self.sae.project_decoder_gradient_()
        nn.utils.clip_grad_norm_(self.sae.parameters(), 1.0)
        self.adam.step()
        self.sae.constrain_()
        return total.detach()


def main() -> None:
    """Assert equal steps, measure and print the times, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    rounds = parser.parse_args().rounds
    batches = random_rows(N_BATCHES * N, D, 0).split(N)
    timings, pairs, differences, targets = {}, {}, {}, []
    for variant in CONFIGS:
        differences[variant] = assert_agreement(variant, batches[0])
        timings[variant] = measure(variant, batches, rounds)
        pairs[variant] = measure_pairs(variant, batches[0])
        targets += report(variant, timings[variant], pairs[variant])
    alone = measure_losses(batches[0], rounds)
    by_pairs, by_product = (alone[name].median / alone[ALONE].median for name in (ALONE_PAIRS, ALONE_PRODUCT))
    print(f"  pairs / ours {by_pairs:.0f} (the paper's claim for its linear form: 159), as product {by_product:.1f}")
    targets.append(Target("MonoLoss alone: pairs / ours", by_pairs, at_least=159))
    result = {
        "sizes": {"width": D, "n_latents": M, "k": K, "batch_size": N},
        "relative_differences_of_a_step": differences,
        "rounds": rounds,
        "timings": {
            variant: {name: timing.as_dict() for name, timing in {**each, DENSE_PAIRS: pairs[variant]}.items()}
            for variant, each in timings.items()
        },
        "mono_loss_alone": {name: timing.as_dict() for name, timing in alone.items()},
        "targets": print_targets(targets),
    }
    write_result("step", result)


def ours(variant: str, memory: float | None) -> Training:
    """Return our training from the initial weights; without MonoLoss if memory is None."""
    mono = None if memory is None else MonoLoss(memory=memory)
    return Training(SparseAutoencoder(D, CONFIGS[variant]), mono, WEIGHTS[variant])


def dense(variant: str, mono_loss: Callable[[Tensor, Tensor], Tensor] | None) -> DenseTraining:
    """Return the dense training from the same initial weights."""
    return DenseTraining(DenseSae(SparseAutoencoder(D, CONFIGS[variant])), mono_loss, WEIGHTS[variant], LR)


def assert_agreement(variant: str, batch: Tensor) -> dict[str, float]:
    """Assert that one step of both from the same weights has equal losses, and gradients within 1e-3 of their norm.

    Return the relative differences. (The tests check that in float64 they are at most 1e-10; in float32 the products
    after the selection round differently.)
    """
    one, other = ours(variant, 0.0), dense(variant, dense_mono_loss)
    losses = float(one.step(batch)), float(other.step(batch))
    assert abs(losses[0] / losses[1] - 1) <= 1e-5, losses
    found = {"loss": abs(losses[0] / losses[1] - 1)}
    theirs = dict(other.sae.named_parameters())
    for name, parameter in one.sae.named_parameters():
        assert parameter.grad is not None
        expected = theirs[name].grad
        assert expected is not None
        found[name] = float((parameter.grad - expected).norm() / expected.norm())
        assert found[name] <= 1e-3, (variant, name, found[name])
    print(f"{variant}: a step agrees; relative differences " + ", ".join(f"{k} {v:.0e}" for k, v in found.items()))
    return found


def measure(variant: str, batches: tuple[Tensor, ...], rounds: int) -> dict[str, Timing]:
    """Time our steps and the dense ones in turn, each step on the next batch."""
    trainings: dict[str, Training | DenseTraining] = {
        OURS: ours(variant, None),
        OURS_MONO: ours(variant, 0.0),
        OURS_MEMORY: ours(variant, MEMORY),
        DENSE: dense(variant, None),
        DENSE_MONO: dense(variant, dense_mono_loss),
    }
    taken = dict.fromkeys(trainings, 0)

    def step(name: str) -> None:
        trainings[name].step(batches[taken[name] % N_BATCHES])
        taken[name] += 1

    opponents = {name: (lambda name=name: step(name)) for name in trainings}
    often = {name: opponents[name] for name in (OURS, OURS_MONO, OURS_MEMORY)}
    n_runs = (rounds + 1) * len(opponents) + _OFTEN * rounds * len(often)
    with progress_of_runs(n_runs) as advance:
        timings = time_in_turn(opponents, rounds, advance=advance)
        # The cost of MonoLoss is smaller than the scatter of the steps' times: time our steps more often
        return timings | time_in_turn(often, _OFTEN * rounds, warm=False, advance=advance)


def measure_pairs(variant: str, batch: Tensor) -> Timing:
    """Time one dense step with MonoLoss over pairs."""
    training = dense(variant, pairwise_loss)
    with progress_of_runs(1) as advance:
        run = {DENSE_PAIRS: lambda: training.step(batch)}
        return time_in_turn(run, 1, warm=False, advance=advance)[DENSE_PAIRS]


def measure_losses(batch: Tensor, rounds: int) -> dict[str, Timing]:
    """Time MonoLoss alone on a batch of TopK codes, forward and backward; the pairwise form once."""
    sae, mono = SparseAutoencoder(D, CONFIGS["TopK"]), MonoLoss()
    with torch.no_grad():
        codes = sae.encode(batch)
    values, dense_codes = codes.values.clone().requires_grad_(), codes.to_dense().requires_grad_()

    def sparse() -> Tensor:
        values.grad = None
        loss = mono(batch, SparseActivations(values, codes.indices, M, check=False))
        loss.backward()
        return loss.detach()

    def dense_by(mono_loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        dense_codes.grad = None
        loss = mono_loss(batch, dense_codes)
        loss.backward()
        return loss.detach()

    def product_loss(embeddings: Tensor, activations: Tensor) -> Tensor:
        return loss_of(pairwise_score_as_product(embeddings, activations))

    often = {
        ALONE: sparse,
        ALONE_DENSE: lambda: dense_by(dense_mono_loss),
        ALONE_PRODUCT: lambda: dense_by(product_loss),
    }
    expected = float(sparse())
    assert values.grad is not None
    of_values = values.grad.clone()
    for name in (ALONE_DENSE, ALONE_PRODUCT):
        assert abs(float(often[name]()) / expected - 1) <= 1e-5, name
        assert_same_gradient(name, dense_codes, codes.indices, of_values)
    with progress_of_runs((rounds + 1) * len(often) + 1) as advance:
        timings = time_in_turn(often, rounds, advance=advance)
        timings |= time_in_turn({ALONE_PAIRS: lambda: dense_by(pairwise_loss)}, 1, warm=False, advance=advance)
    assert_same_gradient(ALONE_PAIRS, dense_codes, codes.indices, of_values)
    print("\nMonoLoss alone, forward and backward")
    for name, timing in timings.items():
        print(f"  {name:28} median {timing.median:7.3f} s   minimum {timing.minimum:7.3f} s")
    return timings


def assert_same_gradient(name: str, dense_codes: Tensor, indices: Tensor, expected: Tensor) -> None:
    """Assert that a dense gradient equals `expected`, ours, at the stored entries."""
    assert dense_codes.grad is not None
    difference = (dense_codes.grad.gather(1, indices) - expected).norm() / expected.norm()
    assert difference <= 1e-4, (name, float(difference))


def report(variant: str, timings: dict[str, Timing], pairs: Timing) -> list[Target]:
    """Print the times of a variant; return its ratios with their targets."""
    print(f"\n{variant}, one step")
    for name, timing in {**timings, DENSE_PAIRS: pairs}.items():
        runs = "once" if name == DENSE_PAIRS else f"minimum {timing.minimum:7.3f} s"
        print(f"  {name:28} median {timing.median:7.3f} s   {runs}")
    median = {name: timing.median for name, timing in timings.items()}
    added = {name: 100 * (median[name] / median[OURS] - 1) for name in (OURS_MONO, OURS_MEMORY)}
    print(f"  MonoLoss adds {added[OURS_MONO]:.1f} % to ours, with memory {added[OURS_MEMORY]:.1f} %;", end=" ")
    print(f"{100 * (median[DENSE_MONO] / median[DENSE] - 1):.0f} % to the dense step")
    print(f"  without MonoLoss: dense / ours {median[DENSE] / median[OURS]:.2f}")
    print(f"  with MonoLoss: dense / ours {median[DENSE_MONO] / median[OURS_MONO]:.2f}", end=", ")
    print(f"dense with pairs / ours {pairs.median / median[OURS_MONO]:.1f}")
    return [
        Target(f"{variant} with MonoLoss: dense / ours", median[DENSE_MONO] / median[OURS_MONO], at_least=6),
        Target(f"{variant}: MonoLoss adds to our step", added[OURS_MONO], at_most=10, unit=" %"),
        Target(f"{variant}: MonoLoss with memory adds to our step", added[OURS_MEMORY], at_most=10, unit=" %"),
    ]


if __name__ == "__main__":
    main()
