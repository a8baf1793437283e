"""Checks of SAEs, their training and their evaluation.

The tests call them on the library as it is; ``behaviour/test_wrong_saes.py`` calls the same ones on
the library with one fault put in, and sees each raise AssertionError.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from monoloss.evaluation.run import evaluate
from monoloss.sae.config import AuxLoss
from monoloss.sae.model import SparseAutoencoder
from monoloss.sae.objectives import objective
from monoloss.training.config import SaeTraining, TrainingConfig
from monoloss.training.run import train_saes
from support import bounds
from support.saes import (
    VARIANTS,
    VARIANTS_WITH_AUX,
    bits_of,
    generator_of,
    some_config,
    some_rows,
    some_sae,
    structured_store,
)


def calibrated_sae(variant: str, d: int = 64, m: int = 256, k: int = 8) -> tuple[SparseAutoencoder, Tensor]:
    """A float32 SAE in eval() with the 4096 rows that it was calibrated on."""
    sae = SparseAutoencoder(d, some_config(variant, m, k), seed=3)
    rows = torch.randn(4096, d, generator=generator_of(5))
    sae.calibrate_(rows.split(1024))
    return sae.eval(), rows


def assert_same_codes(sae: SparseAutoencoder, rows: Tensor, apart: Tensor, together: Tensor) -> None:
    """Check two tensors of codes of some rows: equal latents, but for ties at the edge; values equal up to rounding.

    At a width of 64 that is 1e-6 to 1e-5 for values around 1; half precision would be 0.003 off at 768, not 0.0002.
    """
    allowed = bounds.of_product(sae.scale(rows).scaled - sae.decoder_bias, sae.encoder_weight)
    if sae.config.variant == "topk":
        edge = together.where(together > 0, torch.inf).amin(1, keepdim=True)
    else:
        edge = getattr(sae.activation, "threshold", torch.zeros(()))
    assert bool((together > 0).any())
    differs = (apart > 0) != (together > 0)
    is_tie = (torch.maximum(apart, together) - edge).abs() <= allowed
    assert bool((differs <= is_tie).all()), f"{int(differs.sum())} other latents"
    bounds.assert_within(apart.where(~differs, 0.0), together.where(~differs, 0.0), allowed)


@torch.no_grad()
def check_codes_do_not_depend_on_other_rows(variant: str) -> None:
    """In eval() a row has the same code alone, in a batch of 7 and of 2048."""
    sae, rows = calibrated_sae(variant)
    together = sae.encode(rows[:2048]).to_dense()[:70]
    for size in (1, 7):
        apart = torch.cat([sae.encode(part).to_dense() for part in rows[:70].split(size)])
        assert_same_codes(sae, rows[:70], apart, together)


def check_small_batches_encode_as_large_ones(width: int) -> None:
    """In float32, where a product of one row sums in another order than one of many."""
    sae = SparseAutoencoder(width, some_config("topk", 512, 8)).eval()
    rows = torch.randn(128, width, generator=torch.Generator().manual_seed(0))
    together = sae.encode(rows).to_dense()
    for size in (1, 2, 3, 7, 40):
        apart = torch.cat([sae.encode(part).to_dense() for part in rows.split(size)])
        assert_same_codes(sae, rows, apart, together)


def train_two(folder: Path, epochs: int = 4, **options: object) -> dict[str, SparseAutoencoder]:
    """A TopK and a BatchTopK SAE trained for a moment on rows with structure, with MonoLoss."""
    store = structured_store(folder / "train", 4000)
    saes = {
        name: SaeTraining(some_config(name, 64, 4), mono_weight=1e-3, lr=3e-3, **options)  # type: ignore[arg-type]
        for name in ("topk", "batch_topk")
    }
    return train_saes(store, TrainingConfig(saes, batch_size=250, epochs=epochs), folder / "run", progress=False)


def check_decoder_rows_after_training(folder: Path) -> None:
    for sae in train_two(folder, epochs=1).values():
        norms = torch.linalg.vector_norm(sae.decoder_rows.double(), dim=1)
        assert bool(((norms - 1.0).abs() <= 1e-6).all()), f"norms from {norms.min()} to {norms.max()}"


def check_l0_at_inference(folder: Path) -> None:
    """After eval() BatchTopK has k latents active a row, within 5 %, on rows it has not seen."""
    held_out = structured_store(folder / "held_out", 2000, seed=1)
    evaluation = evaluate(held_out, train_two(folder))["batch_topk"]
    assert abs(evaluation.summary["l0"] - 4.0) <= 0.05 * 4.0, f"L0 {evaluation.summary['l0']}"


def check_aux_is_zero_without_dead_latents() -> None:
    for variant in VARIANTS_WITH_AUX:
        sae = some_sae(variant, aux=AuxLoss(k=4, dead_after_samples=100))
        sae.samples_since_active.fill_(99)
        terms = objective(sae, sae(some_rows()))
        assert float(terms.aux.detach()) == 0.0
        assert torch.equal(terms.total, terms.reconstruction)


def check_evaluation_changes_no_tensor(folder: Path) -> None:
    store = structured_store(folder / "store", 300)
    saes = {name: calibrated_sae(name, d=32, m=48)[0].train() for name in VARIANTS}
    for sae in saes.values():
        sae.samples_since_active.fill_(7)
    before = {name: bits_of(sae) for name, sae in saes.items()}
    evaluate(store, saes, batch_size=64)
    assert {name: bits_of(sae) for name, sae in saes.items()} == before


class Spy:
    """A model that records the rows it encodes."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def encode(self, inputs: Tensor) -> Tensor:
        self.seen.append(inputs.clone())
        return inputs.relu()


def check_every_row_is_read_once_in_order(folder: Path) -> None:
    store = structured_store(folder / "store", 103, rows_per_shard=40)
    spy = Spy()
    evaluation = evaluate(store, {"spy": spy}, batch_size=16)["spy"]
    assert torch.equal(torch.cat(spy.seen), store.embeddings())
    assert evaluation.metadata["n_rows"] == 103
