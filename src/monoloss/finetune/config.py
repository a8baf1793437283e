"""How a vision model is fine-tuned: frozen dataclasses for model, data, augmentation and optimisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import Any, Literal

from monoloss.checks import check_choice, check_number, check_type
from monoloss.errors import InputError
from monoloss.runs.settings import RunSettings

_WITH_COLUMNS = ("dataset:", "hf-hub:")


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank updates of the query and value projections in place of the backbone's own weights, which stay fixed.

    Attributes:
        rank: of each update.
        alpha: each update is times ``alpha / rank``.
        dropout: of the input of each update, in training.
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
    """Backbone -> pooled activations -> new linear layer of the same width -> ReLU (+ top-k) -> classifier.

    Attributes:
        backbone: a preset, a name in timm, ``hf-hub:USER/NAME`` or a local folder.
        pretrained: start from the backbone's published weights; false for random ones.
        checkpoint: local file of weights for the backbone, instead of its own.
        top_k: active latents a row, after the ReLU; None: all that the ReLU leaves.
        lora: low-rank updates of the attention; None trains the whole backbone.
        image_size: height and width of the model's input in evaluation; None: the backbone's own.
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
        split: of the images to train on.
        validation: held-out images, written like ``images``; None: ``images`` again.
        validation_split: of those; None with ``validation`` None: nothing is validated.
        embeddings: feature store with a row for each image to train on; None where ``mono_weight`` is 0.
        validation_embeddings: feature store with a row for each held-out image: the layer's MonoScore is then measured.
        join_on: how a row of a store finds its image: "id", the relative path (of a dataset the row number), or "name",
            the file name alone, which must then be unique.
        subset: configuration of a dataset on the Hub.
        image_column: of a dataset; None: its only column of images.
        label_column: of a dataset; None: "label".
        workers: processes that decode and augment images. Their number changes no pixel.
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
        """There are held-out images."""
        return self.validation is not None or self.validation_split is not None

    def source(self, *, held_out: bool = False) -> dict[str, Any]:
        """Arguments of `open_images` for the images to train on, or for the held-out ones."""
        spec, split = self.images, self.split
        if held_out:
            spec, split = self.validation or self.images, self.validation_split
            if not spec.startswith(_WITH_COLUMNS):  # the columns are those of the images to train on
                return {"spec": spec, "split": split}
        columns = {"image_column": self.image_column, "label_column": self.label_column}
        return {"spec": spec, "split": split, **columns, "subset": self.subset}


@dataclass(frozen=True)
class AugmentationConfig:
    """What is done to images before the model sees them; mean and standard deviation are always the backbone's.

    Attributes:
        train_crop: side of the random crop; None: ``model.image_size``.
        min_area: the random crop shows at least this share of an image; 1 for the whole of it.
        flip: chance of a mirrored image.
        trivial_augment: one random operation of TrivialAugmentWide an image.
        random_erasing: chance that a random rectangle is blanked.
        mixup: alpha of mixup; 0 turns it off. With ``cutmix`` too, each batch gets one of the two, by even chance.
        cutmix: alpha of cutmix; 0 turns it off.
        mix_embeddings: mix the embeddings with the coefficient of the images; false keeps those of the first image,
            as in the authors' runs.
        repeats: repeated augmentation: so many augmented copies of an image in a batch, of fewer images an epoch.
        eval_resize: shorter side of an image in evaluation before the centre crop to ``model.image_size``; None: what
            the backbone's own preprocessing has.
        interpolation: of resized images; None: the backbone's own.
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
        """Batches are mixed."""
        return self.mixup > 0 or self.cutmix > 0


@dataclass(frozen=True)
class OptimisationConfig:
    """SGD with a schedule and an average of the weights.

    Attributes:
        lr: learning rate at its highest.
        momentum: of SGD.
        weight_decay: of weight matrices and kernels; norms and biases have none.
        schedule: after the warm-up: "constant", half a cosine to 0 at the end of the run ("cosine"), or times
            ``step_factor`` every ``step_epochs`` ("step").
        step_epochs: of the schedule "step".
        step_factor: of the schedule "step".
        warmup_epochs: epochs over which the learning rate rises along a line; 0 begins with ``lr``.
        warmup_from: what it rises from, as a share of ``lr``.
        label_smoothing: share of the target that is spread over all classes.
        clip_norm: largest norm of the gradient; None does not clip.
        ema_decay: the weights are averaged over the run, ``average <- decay average + (1 - decay) weights``, and the
            average is what is validated and saved; None: no average.
        ema_every_steps: optimiser steps between two updates of the average.
        ema_adjusted: ``1 - decay`` is times ``batch_size * accumulate_batches * ema_every_steps / epochs`` (at most
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
    """A fine-tuning run.

    Attributes:
        model: what is trained.
        data: on what.
        augmentation: what is done to the images.
        optimisation: how.
        mono_weight: factor of MonoLoss on the new layer; 0 trains without it. More raises the layer's score.
        mono_memory: ``memory`` of :class:`monoloss.MonoLoss`, in [0, 1).
        mono_center: take the mean of the store's rows off the embeddings that MonoLoss sees.
        validate_every_epochs: epochs between two validations; the last epoch is validated in any case.

    The others are those of every run, :class:`monoloss.runs.settings.RunSettings`.

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
    """Refuse options that make nothing of each other."""
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
    """Refuse fields that are no counts of at least 1; those that are optional may be None."""
    for name in (*names, *optional):
        value = getattr(config, name)
        if value is not None or name not in optional:
            check_number(f"{where}.{name}" if where else name, value, at_least=1, integer=True)


def _check_unset(where: str, config: Any, *names: str, expected: str) -> None:
    """Refuse fields that are not at their defaults, where nothing makes use of them."""
    for known in fields(config):
        value = getattr(config, known.name)
        if known.name in names and value != known.default:
            name = f"{where}.{known.name}" if where else known.name
            raise InputError(name, value, f"{expected} to make use of it")


def _check_shares(where: str, config: object, *names: str) -> None:
    """Refuse fields that are not within [0, 1]."""
    for name in names:
        value = getattr(config, name)
        check_number(f"{where}.{name}", value, at_least=0.0)
        if value > 1.0:
            raise InputError(f"{where}.{name}", value, "at most 1")
