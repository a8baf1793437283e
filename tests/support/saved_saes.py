"""SAEs of every variant as they are after training, in float32, for the tests of saved SAEs."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from monoloss.files.model_folder import Provenance
from monoloss.sae.config import BatchTopKConfig, InputScaling, JumpReluConfig, SaeConfig, TopKConfig, VanillaConfig
from monoloss.sae.model import SparseAutoencoder

D, M, K = 12, 40, 3
PROVENANCE = Provenance({"name": "vit", "size": [224, 224]}, "ab12", {"lr": 1e-4, "clip_norm": None, "name": "Zürich"})
ALL_STEPS = InputScaling(unit_norm=True, center=True, standardise=True)
CENTRED = InputScaling(unit_norm=False, center=True)
CASES: dict[str, SaeConfig] = {
    "topk": TopKConfig("topk", M, K),
    "topk_centred": TopKConfig("topk", M, K, inputs=ALL_STEPS),
    "topk_tied": TopKConfig("topk", M, K, tied=True),
    "batch_topk": BatchTopKConfig("batch_topk", M, K),
    "batch_topk_centred": BatchTopKConfig("batch_topk", M, K, inputs=CENTRED),
    "jump_relu": JumpReluConfig("jump_relu", M, initial_threshold=0.4, target_l0=3.0),
    "jump_relu_centred": JumpReluConfig("jump_relu", M, initial_threshold=0.4, inputs=ALL_STEPS),
    "vanilla": VanillaConfig("vanilla", M),
    "vanilla_centred": VanillaConfig("vanilla", M, inputs=CENTRED),
}


def sample_rows(n: int = 70, seed: int = 1) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed)) + 0.3


def trained_sae(case: str, seed: int = 0) -> SparseAutoencoder:
    """In `eval()`, every parameter and counter away from where it starts, calibrated."""
    generator = torch.Generator().manual_seed(seed + 50)
    config = CASES[case]
    mean = torch.randn(D, generator=generator) * 0.1 if config.inputs.center else None
    sae = SparseAutoencoder(D, config, input_mean=mean, seed=seed)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        sae.constrain_()
    sae.calibrate_([sample_rows(200, seed=2)])
    sae.samples_since_active.copy_(torch.randint(0, 2**40, (M,), generator=generator))
    return sae.eval()


def contents_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def saved(case: str, folder: Path) -> tuple[SparseAutoencoder, Path]:
    sae = trained_sae(case)
    sae.save_pretrained(folder / case)
    return sae, folder / case
