"""Mixup and cutmix of a batch, with one coefficient for images, targets and embeddings."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor
from torchvision.transforms import v2

from monoloss.checks import check_number
from monoloss.errors import InputError
from monoloss.finetune.images.seeds import seeded_from


class MixedBatch(NamedTuple):
    """A batch in which row i mixes image i with image i - 1 (row 0 with the last image)."""

    images: Float[Tensor, "n c h w"]
    targets: Float[Tensor, "n k"]
    """Shares of the classes, `(n, n_classes)` float32; rows sum to 1."""
    embeddings: Float[Tensor, "n d"] | None
    coefficient: float
    """Share of image i in row i, in [0, 1]; for cutmix the share of its pixels."""


class BatchMixing:
    """Mixes each image of a batch with the one before it, by torchvision's mixup or cutmix (equally often, if both).

    Embeddings are mixed with the coefficient of the images, `c e_i + (1 - c) e_(i - 1)`, so that MonoLoss compares a
    mixed image with both. Pass them at length 1: the shares are those of directions only then. torchvision's own call
    would leave embeddings unmixed.

    Args:
        n_classes: number of classes.
        mixup: alpha of mixup's Beta distribution; 0 turns mixup off.
        cutmix: alpha of cutmix's Beta distribution; 0 turns cutmix off.
        mix_embeddings: False leaves row i the embedding of image i.

    Raises:
        InputError: neither `mixup` nor `cutmix` is above 0.
    """

    def __init__(self, n_classes: int, *, mixup: float = 0.0, cutmix: float = 0.0, mix_embeddings: bool = True) -> None:
        check_number("n_classes", n_classes, at_least=1, integer=True)
        check_number("mixup", mixup, at_least=0.0)
        check_number("cutmix", cutmix, at_least=0.0)
        if mixup == cutmix == 0:
            raise InputError("mixup", "0, as cutmix", "one of them above 0")
        self.n_classes, self.mix_embeddings = n_classes, mix_embeddings
        self._kinds: list[v2.MixUp | v2.CutMix] = [v2.MixUp(alpha=mixup)] if mixup > 0 else []
        self._kinds += [v2.CutMix(alpha=cutmix)] if cutmix > 0 else []

    def __call__(
        self,
        images: Float[Tensor, "n c h w"],
        labels: Int64[Tensor, " n"],
        embeddings: Float[Tensor, "n d"] | None,
        *seed_parts: int,
    ) -> MixedBatch:
        """Mix a batch; the random choices depend on `seed_parts` alone."""
        targets = F.one_hot(labels, self.n_classes).to(torch.float32)
        with seeded_from("batch", *seed_parts):
            kind = self._kinds[int(torch.randint(len(self._kinds), ()))]
            params = kind.make_params([images])
        coefficient = float(params["lam_adjusted"] if "lam_adjusted" in params else params["lam"])
        mixed: Tensor = kind.transform(images, {**params, "labels": targets, "batch_size": len(images)})
        if embeddings is not None and self.mix_embeddings:
            embeddings = _mixed(embeddings, coefficient)
        return MixedBatch(mixed, _mixed(targets, coefficient), embeddings, coefficient)


def _mixed(rows: Float[Tensor, "n d"], coefficient: float) -> Float[Tensor, "n d"]:
    """Mix each row with the row before it."""
    return coefficient * rows + (1.0 - coefficient) * rows.roll(1, 0)
