"""Values published in the paper, and the rule for which evaluations they may be compared with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from monoloss.evaluation.result import Evaluation
from monoloss.sae.config import VARIANT_TITLES

SOURCE = "arXiv 2602.12403"
VARIANTS = {name: VARIANT_TITLES[name] for name in ("batch_topk", "topk", "jump_relu", "vanilla")}  # in its order
MEASURES = {
    "score_mean_zero_filled": "score",
    "r2": "R2",
    "purity_binary": "purity",
    "purity_weighted": "weighted purity",
}


class Pair(NamedTuple):
    """A published value without and with MonoLoss."""

    without: float
    with_loss: float


class Setting(NamedTuple):
    """Data set, encoder and measure of published values."""

    data: str
    encoder: str
    measure: str


def _pairs(*values: float) -> dict[str, Pair]:
    """Return the pair of each variant from eight values: in the order of VARIANTS, each without and with MonoLoss."""
    pairs = zip(values[::2], values[1::2], strict=True)
    return {variant: Pair(*pair) for variant, pair in zip(VARIANTS, pairs, strict=True)}


PUBLISHED: Mapping[Setting, Mapping[str, Pair]] = {
    Setting("ImageNet", "CLIP", "score_mean_zero_filled"): _pairs(
        0.437, 0.602, 0.469, 0.550, 0.464, 0.568, 0.456, 0.550
    ),
    Setting("ImageNet", "CLIP", "r2"): _pairs(0.846, 0.840, 0.817, 0.819, 0.769, 0.752, 0.779, 0.741),
    Setting("ImageNet", "CLIP", "purity_binary"): _pairs(0.144, 0.462, 0.159, 0.251, 0.208, 0.446, 0.002, 0.007),
    Setting("ImageNet", "CLIP", "purity_weighted"): _pairs(0.217, 0.539, 0.240, 0.339, 0.278, 0.532, 0.009, 0.024),
    Setting("ImageNet", "SigLIP2", "score_mean_zero_filled"): _pairs(
        0.466, 0.583, 0.594, 0.612, 0.539, 0.579, 0.410, 0.406
    ),
    Setting("ImageNet", "SigLIP2", "r2"): _pairs(0.846, 0.848, 0.651, 0.647, 0.779, 0.779, 0.652, 0.627),
    Setting("ImageNet", "SigLIP2", "purity_binary"): _pairs(0.233, 0.326, 0.340, 0.416, 0.249, 0.337, 0.037, 0.077),
    Setting("ImageNet", "SigLIP2", "purity_weighted"): _pairs(0.305, 0.404, 0.400, 0.473, 0.321, 0.409, 0.069, 0.141),
    Setting("ImageNet", "ViT", "score_mean_zero_filled"): _pairs(
        0.245, 0.646, 0.238, 0.484, 0.333, 0.600, 0.371, 0.457
    ),
    Setting("ImageNet", "ViT", "r2"): _pairs(0.787, 0.763, 0.809, 0.811, 0.799, 0.757, 0.764, 0.714),
    Setting("ImageNet", "ViT", "purity_binary"): _pairs(0.152, 0.723, 0.128, 0.431, 0.287, 0.609, 0.002, 0.004),
    Setting("ImageNet", "ViT", "purity_weighted"): _pairs(0.331, 0.795, 0.319, 0.586, 0.445, 0.767, 0.011, 0.020),
    Setting("OpenImages", "CLIP", "score_mean_zero_filled"): _pairs(
        0.361, 0.514, 0.386, 0.498, 0.368, 0.472, 0.378, 0.434
    ),
    Setting("OpenImages", "CLIP", "r2"): _pairs(0.786, 0.781, 0.758, 0.744, 0.736, 0.728, 0.728, 0.698),
    Setting("OpenImages", "SigLIP2", "score_mean_zero_filled"): _pairs(
        0.445, 0.554, 0.548, 0.579, 0.482, 0.525, 0.441, 0.489
    ),
    Setting("OpenImages", "SigLIP2", "r2"): _pairs(0.759, 0.756, 0.567, 0.554, 0.728, 0.731, 0.530, 0.480),
    Setting("OpenImages", "ViT", "score_mean_zero_filled"): _pairs(
        0.137, 0.424, 0.128, 0.363, 0.123, 0.276, 0.230, 0.322
    ),
    Setting("OpenImages", "ViT", "r2"): _pairs(0.678, 0.645, 0.702, 0.661, 0.726, 0.698, 0.643, 0.597),
}

# Name and tag of weights in timm: the authors' encoders, or the nearest ones in timm
_ENCODERS = {
    ("vit_large_patch14_clip_224", "datacompxl"): "CLIP",
    ("vit_so400m_patch14_siglip_378", "v2_webli"): "SigLIP2",
    ("vit_large_patch16_224", "augreg_in21k_ft_in1k"): "ViT",
}
_N_LATENTS, _K = 8192, 64
_IMAGENET_ROWS, _IMAGENET_CLASSES = 50_000, 1000


def published_beside(evaluation: Evaluation) -> dict[str, Pair]:
    """Return the published values that an evaluation may be compared with, by measure; empty where there are none.

    Encoder, data, SAE variant, number of latents (8192) and k (64) must be those of the paper.
    """
    metadata, model = evaluation.metadata, str(evaluation.metadata.get("model"))
    variant = _first_group(r"variant='(\w+)'", model)
    k = _first_group(r"\bk=(\d+)", model.partition("aux=")[0])
    same_k = variant in ("jump_relu", "vanilla") or k == str(_K)
    same_sizes = same_k and evaluation.summary.get("n_latents") == _N_LATENTS
    if variant not in VARIANTS or not same_sizes or metadata.get("centred"):
        return {}
    data, encoder = _data_of(metadata), _encoder_of(metadata.get("encoder"))
    return {
        setting.measure: pairs[variant]
        for setting, pairs in PUBLISHED.items()
        if (setting.data, setting.encoder) == (data, encoder)
    }


def _first_group(pattern: str, text: str) -> str | None:
    """Return the first group of the first match of a pattern in a text, or None."""
    match = re.search(pattern, text)
    return match[1] if match else None


def _data_of(metadata: Mapping[str, object]) -> str | None:
    """Return the paper's name of the data that was evaluated, told from the store's name; None for other data."""
    name = re.sub(r"[^a-z]", "", str(metadata.get("store")).lower())
    if "openimages" in name:
        return "OpenImages"
    classes = metadata.get("class_names")
    n_classes = len(classes) if isinstance(classes, list) else _IMAGENET_CLASSES
    is_whole = metadata.get("n_rows") == _IMAGENET_ROWS and n_classes == _IMAGENET_CLASSES
    return "ImageNet" if "imagenet" in name and is_whole else None


def _encoder_of(encoder: object) -> str | None:
    """Return the paper's name of an encoder, from its metadata; None for other encoders."""
    if not isinstance(encoder, Mapping) or not isinstance(encoder.get("weights"), str):
        return None
    name = str(encoder.get("name")).partition(".")[0]
    return _ENCODERS.get((name, str(encoder["weights"]).rpartition(".")[2]))
