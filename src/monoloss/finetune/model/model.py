"""The fine-tuned model: backbone, a new linear layer of the same width, ReLU (and top-k), classifier."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from monoloss.checks import check_number, check_type
from monoloss.errors import InputError
from monoloss.files.model_folder import Provenance
from monoloss.finetune.model.backbone import Backbone, load_backbone
from monoloss.finetune.model.lora import LoraOptions, add_lora, merge_lora
from monoloss.sparse.selection import largest_of_rows


class FineTuneOutput(NamedTuple):
    """Logits `(n, n_classes)` and activations of the new layer `(n, m)`, >= 0, for the same images."""

    logits: Float[Tensor, "n c"]
    activations: Float[Tensor, "n m"]


class FineTuneModel(nn.Module):
    """Images -> backbone -> pooled activations -> new linear layer of the same width -> ReLU -> classifier.

    MonoLoss makes the latents of the new layer monosemantic. (Regularising an existing layer instead overfitted a fixed
    subset of the images, says the paper.)

    Args:
        backbone: from :func:`monoloss.finetune.model.backbone.load_backbone`.
        class_names: names of the classes 0, 1, ....
        top_k: latents that stay active in a row after the ReLU, the largest ones; None for all.
        seed: seed of the weights of the new layer and the classifier.

    Attributes:
        width: width of the pooled activations, and number of latents of the new layer.
        class_names: names of the classes, in the order of the logits.
        preprocessing: preprocessing of evaluation, as in :class:`Backbone`; saved with the model.
        recipe: recipe of the backbone, for :func:`monoloss.finetune.model.backbone.rebuild_backbone`.
        provenance: origin of the model, saved with it; empty until training sets it.

    Raises:
        InputError: ``top_k`` above the width; fewer than two classes, or a name twice.

    Source:
        arXiv 2602.12403, fine-tuning; its top-k is the full width, and so without effect.
    """

    def __init__(
        self, backbone: Backbone, class_names: Sequence[str], *, top_k: int | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        self.width, self.class_names = backbone.width, _checked_names(class_names)
        if top_k is not None:
            check_number("model.top_k", top_k, at_least=1, integer=True)
            if top_k > self.width:
                raise InputError("model.top_k", top_k, f"at most the layer's width, {self.width}")
        self.top_k = top_k
        self.recipe: Mapping[str, Any] = backbone.recipe
        self.preprocessing: Mapping[str, Any] = backbone.preprocessing
        self.provenance = Provenance()
        self.backbone = backbone.model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.new_layer = nn.Linear(self.width, self.width)
            self.classifier = nn.Linear(self.width, len(self.class_names))

    @property
    def n_classes(self) -> int:
        """Number of classes that the classifier tells apart."""
        return len(self.class_names)

    @property
    def input_size(self) -> int:
        """Height and width of an image after preprocessing."""
        return int(self.preprocessing["input_size"][1])

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c"]:
        """Return the logits of preprocessed images."""
        return self.forward_both(images).logits

    def layer(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n m"]:
        """Return the activations of the new layer after ReLU and top-k, which MonoLoss and `evaluate` score."""
        activations: Tensor = self.new_layer(self.backbone(images)).relu()
        if self.top_k is None or self.top_k == self.width:
            return activations
        largest = largest_of_rows(activations.detach(), self.top_k)
        return torch.zeros_like(activations).scatter(1, largest, activations.gather(1, largest))

    def forward_both(self, images: Float[Tensor, "n 3 h w"]) -> FineTuneOutput:
        """Return logits and activations from one pass."""
        activations = self.layer(images)
        return FineTuneOutput(self.classifier(activations), activations)


def build_model(
    backbone: str,
    class_names: Sequence[str],
    *,
    pretrained: bool = True,
    checkpoint: str | None = None,
    image_size: int | None = None,
    top_k: int | None = None,
    lora: LoraOptions | None = None,
    seed: int = 0,
) -> FineTuneModel:
    """Build a model to be trained, on the CPU, in ``train()`` mode.

    With ``lora`` the backbone is frozen except for the low-rank updates; new layer and classifier are always trained.

    Args:
        backbone: as for :func:`load_backbone`, like ``pretrained``, ``checkpoint`` and ``image_size``.
        class_names: names of the classes 0, 1, ....
        pretrained: start from the published weights; false for random ones.
        checkpoint: local weights file, instead of the published weights.
        image_size: height and width of the model's input in evaluation, in pixels.
        top_k: latents that stay active in a row after the ReLU, the largest ones; None for all.
        lora: options of the low-rank updates; None trains the whole backbone.
        seed: seed of all weights that are drawn.

    Raises:
        InputError: a backbone or weights that cannot be used; LoRA for a backbone that `add_lora` refuses.
        MissingExtraError: timm, or for LoRA peft, is not installed.
    """
    loaded = load_backbone(backbone, pretrained=pretrained, checkpoint=checkpoint, image_size=image_size, seed=seed)
    model = FineTuneModel(loaded, class_names, top_k=top_k, seed=seed)
    if lora is not None:
        add_lora(model.backbone, **lora, seed=seed)
    return model.train()


def merged(model: FineTuneModel) -> FineTuneModel:
    """Return a copy of a model with the low-rank updates merged into its weights, all of them trainable."""
    result = copy.deepcopy(model)
    merge_lora(result.backbone)
    return result.requires_grad_(True)


def _checked_names(names: Sequence[str]) -> tuple[str, ...]:
    """Check that the class names are at least two distinct texts, and return them as a tuple."""
    check_type("class_names", names, list | tuple, "a list of texts")
    for name in names:
        check_type("class_names", name, str, "a list of texts")
    if len(names) < 2 or len(set(names)) < len(names):
        got = f"{len(names)} names" if len(names) < 2 else "a name twice"
        raise InputError("class_names", got, "at least two classes, each with a name of its own")
    return tuple(names)
