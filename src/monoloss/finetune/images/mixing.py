"""Mixup and cutmix of a batch: images, targets and embeddings with one coefficient."""

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
    """A batch whose row i shows image i and the image before it.

    Args:
        images: `(n, 3, h, w)`.
        targets: `(n, n_classes)` float32, rows that sum to 1.
        embeddings: `(n, d)`, or None.
        coefficient: the share of image i in its row: of its pixels for cutmix.
    """

    images: Float[Tensor, "n c h w"]
    targets: Float[Tensor, "n k"]
    embeddings: Float[Tensor, "n d"] | None
    coefficient: float


class BatchMixing:
    """Mix each image of a batch with the one before it by torchvision's mixup or cutmix; of both, one by even chance.

    Embeddings are mixed with the coefficient of the images, `c e_i + (1 - c) e_(i - 1)`: a mixed image is drawn toward
    both. Rows at length 1 make that the same share for both, so that is how they should come. torchvision's own call
    would pass a third tensor through unmixed.

    Args:
        n_classes: of the targets.
        mixup: alpha of its Beta distribution; 0 for none.
        cutmix: likewise.
        mix_embeddings: False keeps those of image i.

    Raises:
        InputError: neither is above 0.
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
        *drawn: int,
    ) -> MixedBatch:
        """Mix a batch; `drawn` is what the random choices follow from."""
        targets = F.one_hot(labels, self.n_classes).to(torch.float32)
        with seeded_from("batch", *drawn):
            kind = self._kinds[int(torch.randint(len(self._kinds), ()))]
            made = kind.make_params([images])
        coefficient = float(made["lam_adjusted"] if "lam_adjusted" in made else made["lam"])
        mixed: Tensor = kind.transform(images, {**made, "labels": targets, "batch_size": len(images)})
        if embeddings is not None and self.mix_embeddings:
            embeddings = _mixed(embeddings, coefficient)
        return MixedBatch(mixed, _mixed(targets, coefficient), embeddings, coefficient)


def _mixed(rows: Float[Tensor, "n d"], coefficient: float) -> Float[Tensor, "n d"]:
    return coefficient * rows + (1.0 - coefficient) * rows.roll(1, 0)
