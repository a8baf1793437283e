"""Settings of an evaluated model and its training, read from the metadata of its evaluation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from monoloss.evaluation.result import Evaluation
from monoloss.sae.config import VARIANT_TITLES

_FIELD = re.compile(r"(\w+)=('[^']*'|[\w.+-]+)")  # a field in the repr of a configuration


@dataclass(frozen=True)
class Settings:
    """Settings of one model and its training, as far as its evaluation says."""

    variant: str | None
    """Variant of a SAE, such as "topk"; None for other models."""
    model: str
    """Description of the model."""
    n_latents: int
    k: int | None = None
    """Active latents of each row; None where the variant has no such number."""
    tied: bool = False
    """The decoder is the encoder's transpose."""
    training: Mapping[str, Any] | None = None
    """Settings of the training by name; None where they are unknown."""
    backbone: str | None = None
    """Backbone of a fine-tuned model; None for others."""

    @property
    def mono_weight(self) -> float | None:
        """Factor of MonoLoss in training; None where it is unknown."""
        weight = (self.training or {}).get("mono_weight")
        return None if weight is None else float(weight)

    @property
    def key(self) -> object:
        """Comparison key: models with equal keys are compared. None for models that are neither SAEs nor fine-tuned."""
        if self.backbone is not None:
            return ("fine-tuned", self.backbone, self._start, self._images)
        return None if self.variant is None else (self.variant, self.n_latents, self.k, self.tied)

    @property
    def title(self) -> str:
        """Short title: the SAE's variant, the fine-tuned backbone, or "Other models"."""
        if self.backbone is not None:
            return f"Fine-tuned {self.backbone}"
        title = VARIANT_TITLES.get(self.variant or "", "Other models")
        return f"{title}, tied" if self.tied else title

    @property
    def long_title(self) -> str:
        """Title with a SAE's sizes, or with a fine-tuned model's initial weights and images."""
        if self.backbone is not None:
            start = f", from {self._start}" if self._start else ""
            return self.title + start + (f", on {self._images}" if self._images else "")
        if self.variant is None:
            return self.title
        return f"{self.title}, {self.n_latents} latents" + ("" if self.k is None else f", k = {self.k}")

    @property
    def _start(self) -> str:
        """Initial weights of a fine-tuned model; empty where they are unknown."""
        model = self._part("model")
        if model.get("checkpoint") is not None:
            return str(model["checkpoint"])
        return str(model.get("backbone", "")) if model.get("pretrained", True) else "random weights"

    @property
    def _images(self) -> str:
        """Images that a model was fine-tuned on; empty where they are unknown."""
        data = self._part("data")
        return " ".join(str(data[key]) for key in ("images", "subset", "split") if data.get(key) is not None)

    def _part(self, name: str) -> Mapping[str, Any]:
        """Return a group of the training's settings; empty where it is unknown."""
        part = (self.training or {}).get(name)
        return part if isinstance(part, Mapping) else {}

    @property
    def loss(self) -> str | None:
        """Weight and options of MonoLoss in training, as text; None where they are unknown."""
        if self.mono_weight is None or self.training is None:
            return None
        if self.mono_weight == 0:
            return "without MonoLoss"
        parts = [f"MonoLoss, weight {self.mono_weight:g}"]
        if self.training.get("mono_memory"):
            parts.append(f"memory {self.training['mono_memory']:g}")
        if self.training.get("mono_center"):
            parts.append("centred")
        return ", ".join(parts)

    def metadata(self, evaluation: Evaluation) -> list[tuple[str, str]]:
        """Return data, model, training and origin of the evaluation as headings with texts, without unknown ones."""
        metadata, encoder = evaluation.metadata, evaluation.metadata.get("encoder")
        model = self.long_title if self.variant is not None else f"{self.model}, {self.n_latents} latents"
        rows = f"{metadata['n_rows']} rows of width {metadata.get('width')}" if "n_rows" in metadata else None
        lines = [
            ("Encoder", encoder.get("name") if isinstance(encoder, Mapping) else encoder),
            ("Encoder weights", encoder.get("weights") if isinstance(encoder, Mapping) else None),
            ("Data", ", ".join(str(part) for part in (metadata.get("store"), rows) if part)),
            ("Scored on", "centred embeddings" if metadata.get("centred") else "embeddings as they are"),
            ("Backbone", self.backbone),
            ("Model", model),
            ("Loss", self.loss),
            ("Training", self._training_text()),
            ("Source", metadata.get("source")),
            ("Evaluated with", f"monoloss {metadata['monoloss_version']}" if "monoloss_version" in metadata else None),
        ]
        return [(label, _text(value)) for label, value in lines if value not in (None, "", {})]

    def _training_text(self) -> str | None:
        """Return epochs, batch size, learning rate and seed as text; None if the training is unknown."""
        if not self.training:
            return None
        shared, optimisation = self._part("run"), self.training
        if self.backbone is not None:  # settings of fine-tuning have other groups than those of a SAE
            shared, optimisation = self.training, self._part("optimisation")
        parts = [
            (shared.get("epochs"), "{} epochs"),
            (shared.get("batch_size"), "batches of {}"),
            (optimisation.get("lr"), "learning rate {}"),
            (self.training.get("seed"), "seed {}"),
        ]
        return ", ".join(form.format(_text(value)) for value, form in parts if value is not None) or None


def settings_of(evaluation: Evaluation) -> Settings:
    """Read the settings of the model of an evaluation, also from the metadata that earlier versions wrote."""
    metadata, m = evaluation.metadata, len(evaluation.examples.rows)
    model, training = str(metadata.get("model", "")), metadata.get("training")
    sae, backbone = metadata.get("sae"), metadata.get("backbone")
    if not isinstance(sae, Mapping):  # earlier versions wrote only the repr of the configuration
        fields = _FIELD.findall(model) if re.fullmatch(r"\w+Config\(.*\)", model) else []
        text_of_field = dict(reversed(fields))  # of equal names the first counts: later ones are fields of its parts
        k = text_of_field.get("k", "")
        sae = {
            "variant": text_of_field.get("variant", "").strip("'") or None,
            "k": int(k) if k.isdecimal() else None,
            "tied": text_of_field.get("tied") == "True",
        }
    return Settings(
        sae.get("variant"),
        model,
        m,
        sae.get("k"),
        bool(sae.get("tied")),
        training if isinstance(training, Mapping) else None,
        str(backbone) if backbone is not None else None,
    )


def _text(value: object) -> str:
    """Return a setting as text; nested settings as names and values."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(part)}" for key, part in value.items())
    return str(value)
