"""The settings of a fine-tuning run: frozen dataclasses for model, data, augmentation and optimisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import Any, Literal

from monoloss.checks import check_choice, check_number, check_type
from monoloss.errors import InputError
from monoloss.runs.settings import RunSettings

_WITH_COLUMNS = ("dataset:", "hf-hub:")  # sources whose images and labels are columns of a table


@dataclass(frozen=True)
class LoraConfig:
    """Options of LoRA, which trains low-rank updates of attention's query and value weights and freezes the backbone.

    Attributes:
        rank: rank of each update.
        alpha: each update is multiplied by ``alpha / rank``.
        dropout: share of the inputs of each update that is set to 0 in training, in [0, 1).
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_number("lora.rank", self.rank, at_least=1, integer=True)
        check_number("lora.alpha", self.alpha, above=0.0)
        check_number("lora.dropout", self.dropout, at_least=0.0, below=1.0)


@dataclass(frozen=True)
class ModelConfig:
    """The model: backbone -> pooled activations -> new linear layer of the same width -> ReLU (+ top-k) -> classifier.

    Attributes:
        backbone: a preset, a name in timm, ``hf-hub:USER/NAME`` or a local folder.
        pretrained: start from the backbone's published weights; false for random ones.
        checkpoint: local weights file for the backbone, instead of its published weights.
        top_k: latents that stay active in a row after the ReLU, the largest ones; None for all.
        lora: low-rank updates of the attention; None trains the whole backbone.
        image_size: height and width of the model's input in evaluation, in pixels; None for the backbone's default.
    """

    backbone: str
    pretrained: bool = True
    checkpoint: str | None = None
    top_k: int | None = None
    lora: LoraConfig | None = None
    image_size: int | None = None

    def __post_init__(self) -> None:
        check_type("model.backbone", self.backbone, str, "the name of a model")
        check_type("model.pretrained", self.pretrained, bool, "True or False")
        check_type("model.checkpoint", self.checkpoint, str | None, "a file, or None")
        check_type("model.lora", self.lora, LoraConfig | None, "LoraConfig(rank, alpha), or None")
        _check_counts("model", self, optional=("top_k", "image_size"))


@dataclass(frozen=True)
class DataConfig:
    """Images with one label each, and the embeddings that MonoLoss compares.

    Attributes:
        images: ``imagefolder:PATH``, ``dataset:PATH``, ``hf-hub:USER/NAME``, ``cifar10:PATH`` or ``cifar100:PATH``.
        split: split of ``images`` to train on; None for all.
        validation: source of the held-out images, written like ``images``; None for the same source as ``images``.
        validation_split: split of the held-out images; without it and ``validation`` nothing is validated.
        embeddings: feature store with a row for each image to train on; None where ``mono_weight`` is 0.
        validation_embeddings: feature store with a row for each held-out image; with it the validation measures the
            MonoScore of the new layer.
        join_on: how images and rows of a store are matched: "id" by relative path (for a dataset by row number), or
            "name" by file name alone, which must then be unique.
        subset: configuration of a dataset on the Hub.
        image_column: column of a dataset that holds the images; None for its only column of images.
        label_column: column of a dataset that holds the labels; None for "label".
        workers: processes that decode and augment images; their number changes no pixel.
    """

    images: str
    split: str | None = None
    validation: str | None = None
    validation_split: str | None = None
    embeddings: str | None = None
    validation_embeddings: str | None = None
    join_on: Literal["id", "name"] = "id"
    subset: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    workers: int = 0

    def __post_init__(self) -> None:
        check_type("data.images", self.images, str, "text such as 'imagefolder:PATH'")
        texts = ("split", "validation", "validation_split", "embeddings", "validation_embeddings")
        for name in (*texts, "subset", "image_column", "label_column"):
            check_type(f"data.{name}", getattr(self, name), str | None, "text, or None")
        check_choice("data.join_on", self.join_on, ("id", "name"))
        check_number("data.workers", self.workers, at_least=0, integer=True)
        if self.validation_embeddings is not None and not self.validates:
            expected = "data.validation or data.validation_split to make use of it"
            raise InputError("data.validation_embeddings", self.validation_embeddings, expected)

    @property
    def validates(self) -> bool:
        """Whether the run has held-out images."""
        return self.validation is not None or self.validation_split is not None

    def source(self, *, held_out: bool = False) -> dict[str, Any]:
        """Return the arguments of `open_images` for the images to train on, or for the held-out images."""
        spec, split = self.images, self.split
        if held_out:
            spec, split = self.validation or self.images, self.validation_split
            if not spec.startswith(_WITH_COLUMNS):  # folders have no columns, whatever the training images have
                return {"spec": spec, "split": split}
        columns = {"image_column": self.image_column, "label_column": self.label_column}
        return {"spec": spec, "split": split, **columns, "subset": self.subset}


@dataclass(frozen=True)
class AugmentationConfig:
    """Transforms of images before the model; images are always normalised by the backbone's mean and deviation.

    Attributes:
        train_crop: side of the random crop in pixels; None for ``model.image_size``.
        min_area: smallest share of an image's area that the random crop shows, in (0, 1]; 1 shows the whole image.
        flip: probability that an image is mirrored.
        trivial_augment: apply one random operation of TrivialAugmentWide to each image.
        random_erasing: probability that a random rectangle is blanked.
        mixup: alpha of mixup; 0 turns it off. With ``cutmix`` too, each batch gets one of the two, equally often.
        cutmix: alpha of cutmix; 0 turns it off.
        mix_embeddings: mix the embeddings with the coefficient of the images; false leaves each row the embedding of
            its first image, as in the authors' runs.
        repeats: augmented copies of each image in a batch (repeated augmentation); an epoch then has fewer images.
        eval_resize: shorter side of an image in evaluation, before the centre crop to ``model.image_size``; None for
            the backbone's default.
        interpolation: how images are resized; None for the backbone's default.
    """

    train_crop: int | None = None
    min_area: float = 0.08
    flip: float = 0.5
    trivial_augment: bool = False
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_embeddings: bool = True
    repeats: int = 1
    eval_resize: int | None = None
    interpolation: Literal["bilinear", "bicubic"] | None = None

    def __post_init__(self) -> None:
        _check_counts("augmentation", self, "repeats", optional=("train_crop", "eval_resize"))
        _check_shares("augmentation", self, "flip", "random_erasing", "min_area")
        check_number("augmentation.min_area", self.min_area, above=0.0)
        for name in ("mixup", "cutmix"):
            check_number(f"augmentation.{name}", getattr(self, name), at_least=0.0)
        for name in ("trivial_augment", "mix_embeddings"):
            check_type(f"augmentation.{name}", getattr(self, name), bool, "True or False")
        check_choice("augmentation.interpolation", self.interpolation, ("bilinear", "bicubic", None))
        if not self.mixes:
            _check_unset("augmentation", self, "mix_embeddings", expected="mixup or cutmix above 0")

    @property
    def mixes(self) -> bool:
        """Whether batches are mixed, by mixup or cutmix."""
        return self.mixup > 0 or self.cutmix > 0


@dataclass(frozen=True)
class OptimisationConfig:
    """SGD, the schedule of its learning rate, and an average of the weights.

    Attributes:
        lr: highest learning rate of the run.
        momentum: momentum of SGD.
        weight_decay: weight decay of matrices and kernels; norms and biases have none.
        schedule: learning rate after the warm-up: "constant"; "cosine", half a cosine that ends at 0 with the run; or
            "step", multiplied by ``step_factor`` every ``step_epochs``.
        step_epochs: epochs between two steps of the schedule "step".
        step_factor: factor of each step of the schedule "step".
        warmup_epochs: epochs over which the learning rate rises along a line; 0 begins with ``lr``.
        warmup_from: learning rate at the start of the warm-up, as a share of ``lr``.
        label_smoothing: share of the target that is spread over all classes.
        clip_norm: largest norm of the gradient; None does not clip.
        ema_decay: decay of an average of the weights over the run, ``average <- decay average + (1 - decay) weights``;
            the average is then validated and saved. None for no average.
        ema_every_steps: optimiser steps between two updates of the average.
        ema_adjusted: multiply ``1 - decay`` by ``batch_size * accumulate_batches * ema_every_steps / epochs`` (at most
            1), as in torchvision's and the authors' runs, so that one decay fits runs of different lengths.
    """

    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: Literal["constant", "cosine", "step"] = "cosine"
    step_epochs: int = 30
    step_factor: float = 0.1
    warmup_epochs: int = 0
    warmup_from: float = 0.01
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    ema_decay: float | None = None
    ema_every_steps: int = 32
    ema_adjusted: bool = True

    def __post_init__(self) -> None:
        check_number("optimisation.lr", self.lr, above=0.0)
        for name in ("momentum", "label_smoothing"):
            check_number(f"optimisation.{name}", getattr(self, name), at_least=0.0, below=1.0)
        check_number("optimisation.weight_decay", self.weight_decay, at_least=0.0)
        check_number("optimisation.warmup_epochs", self.warmup_epochs, at_least=0, integer=True)
        check_choice("optimisation.schedule", self.schedule, ("constant", "cosine", "step"))
        _check_counts("optimisation", self, "step_epochs", "ema_every_steps")
        _check_shares("optimisation", self, "step_factor", "warmup_from")
        if self.clip_norm is not None:
            check_number("optimisation.clip_norm", self.clip_norm, above=0.0)
        if self.ema_decay is not None:
            check_number("optimisation.ema_decay", self.ema_decay, at_least=0.0, below=1.0)
        check_type("optimisation.ema_adjusted", self.ema_adjusted, bool, "True or False")
        if self.schedule != "step":
            _check_unset("optimisation", self, "step_epochs", "step_factor", expected="schedule 'step'")
        if self.warmup_epochs == 0:
            _check_unset("optimisation", self, "warmup_from", expected="warmup_epochs above 0")
        if self.ema_decay is None:
            _check_unset("optimisation", self, "ema_every_steps", "ema_adjusted", expected="ema_decay")


@dataclass(frozen=True)
class FineTuneConfig(RunSettings):
    """The settings of a fine-tuning run.

    Attributes:
        model: backbone, new layer and LoRA.
        data: images, labels and embeddings.
        augmentation: transforms of the images.
        optimisation: SGD, its schedule, and the average of the weights.
        mono_weight: factor of MonoLoss on the new layer; 0 trains without it. More raises the layer's score.
        mono_memory: ``memory`` of :class:`monoloss.MonoLoss`, in [0, 1).
        mono_center: subtract the mean of the store's rows from the embeddings before MonoLoss.
        validate_every_epochs: epochs between two validations; the last epoch is validated in any case.

    The other settings are those of every run, :class:`monoloss.runs.settings.RunSettings`.

    Example:
        >>> data = DataConfig("cifar10:data", split="train", embeddings="clip-train")
        >>> FineTuneConfig(ModelConfig("resnet50.tv2_in1k"), data, mono_weight=0.03).epochs
        90
    """

    model: ModelConfig
    data: DataConfig
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    optimisation: OptimisationConfig = field(default_factory=OptimisationConfig)
    mono_weight: float = 0.0
    mono_memory: float = 0.0
    mono_center: bool = False
    _: KW_ONLY
    epochs: int = 90
    batch_size: int = 1024
    validate_every_epochs: int = 1

    def __post_init__(self) -> None:
        check_type("model", self.model, ModelConfig, "ModelConfig(backbone, ...)")
        check_type("data", self.data, DataConfig, "DataConfig(images, ...)")
        check_type("augmentation", self.augmentation, AugmentationConfig, "AugmentationConfig(...)")
        check_type("optimisation", self.optimisation, OptimisationConfig, "OptimisationConfig(...)")
        check_number("mono_weight", self.mono_weight, at_least=0.0)
        check_number("mono_memory", self.mono_memory, at_least=0.0, below=1.0)
        check_type("mono_center", self.mono_center, bool, "True or False")
        super().__post_init__()
        check_number("validate_every_epochs", self.validate_every_epochs, at_least=1, integer=True)
        _check_together(self)


def _check_together(config: FineTuneConfig) -> None:
    """Refuse settings that contradict each other, or that another setting leaves without effect."""
    if config.mono_weight > 0 and config.data.embeddings is None:
        raise InputError("data.embeddings", "nothing", "a feature store, because mono_weight is above 0")
    if config.mono_weight == 0:
        _check_unset("", config, "mono_memory", "mono_center", expected="mono_weight above 0")
    if config.optimisation.warmup_epochs >= config.epochs and config.optimisation.warmup_epochs > 0:
        expected = f"fewer than the run's {config.epochs} epochs"
        raise InputError("optimisation.warmup_epochs", config.optimisation.warmup_epochs, expected)
    repeats = config.augmentation.repeats
    if config.batch_size % repeats:
        raise InputError("augmentation.repeats", repeats, f"a divisor of batch_size, {config.batch_size}")


def _check_counts(where: str, config: object, *names: str, optional: Sequence[str] = ()) -> None:
    """Refuse fields that are not integers of at least 1; fields named in `optional` may be None too."""
    for name in (*names, *optional):
        value = getattr(config, name)
        if value is not None or name not in optional:
            check_number(f"{where}.{name}" if where else name, value, at_least=1, integer=True)


def _check_unset(where: str, config: Any, *names: str, expected: str) -> None:
    """Refuse the named fields unless they have their defaults: without `expected` they have no effect."""
    for option in fields(config):
        value = getattr(config, option.name)
        if option.name in names and value != option.default:
            name = f"{where}.{option.name}" if where else option.name
            raise InputError(name, value, f"{expected} to make use of it")


def _check_shares(where: str, config: object, *names: str) -> None:
    """Refuse fields that are not in [0, 1]."""
    for name in names:
        value = getattr(config, name)
        check_number(f"{where}.{name}", value, at_least=0.0)
        if value > 1.0:
            raise InputError(f"{where}.{name}", value, "at most 1")
