"""Configurations of sparse autoencoders: one frozen dataclass for each variant, named by its field ``variant``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from monoloss.checks import check_choice, check_number, check_type
from monoloss.errors import InputError


@dataclass(frozen=True)
class InputScaling:
    """Scaling of the input rows before the encoder, in the order below; the reconstruction undoes all but unit_norm.

    Attributes:
        unit_norm: scale each row to length 1. The later steps and the loss see these unit rows.
        center: subtract the mean vector of the (unit) training rows.
        standardise: per row, ``(x - mean) / (std + 1e-5)``, std with n - 1.

    Example:
        >>> InputScaling(standardise=True).unit_norm
        True
    """

    unit_norm: bool = True
    center: bool = False
    standardise: bool = False

    def __post_init__(self) -> None:
        for step in ("unit_norm", "center", "standardise"):
            check_type(f"inputs.{step}", getattr(self, step), bool, "True or False")


@dataclass(frozen=True)
class AuxLoss:
    """The loss that revives dead latents: they reconstruct the residual of the live ones (Gao et al. 2024).

    Attributes:
        k: dead latents that reconstruct the residual of a row (TopK: 64; BatchTopK: 512 in the paper).
        weight: factor of the loss; 0 turns it off.
        dead_after_samples: training rows without being active after which a latent is dead.

    Example:
        >>> AuxLoss(k=64).weight
        0.03125
    """

    k: int
    weight: float = 1.0 / 32.0
    dead_after_samples: int = 10_000_000

    def __post_init__(self) -> None:
        check_number("aux.k", self.k, at_least=1, integer=True)
        check_number("aux.weight", self.weight, at_least=0.0)
        check_number("aux.dead_after_samples", self.dead_after_samples, at_least=1, integer=True)


@dataclass(frozen=True)
class TopKConfig:
    """TopK (Gao et al. 2024): ``relu(topk_row((x - b_dec) W_enc + b_enc))``, the k largest of every row.

    Attributes:
        variant: "topk".
        n_latents: number of latents.
        k: active latents a row, at most ``n_latents``.
        tied: the decoder is the encoder transposed, as in the paper's runs; its rows then keep their length.
        inputs: scaling of the rows; the paper standardises them.
        aux: the loss on dead latents.

    Example:
        >>> TopKConfig("topk", n_latents=8192, k=64).inputs.standardise
        True
    """

    variant: Literal["topk"]
    n_latents: int
    k: int
    tied: bool = False
    inputs: InputScaling = field(default_factory=lambda: InputScaling(standardise=True))
    aux: AuxLoss = field(default_factory=lambda: AuxLoss(k=64))

    def __post_init__(self) -> None:
        check_choice("variant", self.variant, ("topk",))
        check_type("tied", self.tied, bool, "True or False")
        _check_topk(self)


@dataclass(frozen=True)
class BatchTopKConfig:
    """BatchTopK (Bussmann et al. 2024): the ``k n`` largest of ``relu((x - b_dec) W_enc)`` in a batch of n rows.

    At inference: all above a stored threshold, so that the code of a row does not depend on its batch.

    Attributes:
        variant: "batch_topk".
        n_latents: number of latents.
        k: mean number of active latents a row, at most ``n_latents``.
        inputs: scaling of the rows.
        aux: the loss on dead latents.

    Example:
        >>> BatchTopKConfig("batch_topk", n_latents=8192, k=64).aux.k
        512
    """

    variant: Literal["batch_topk"]
    n_latents: int
    k: int
    inputs: InputScaling = field(default_factory=InputScaling)
    aux: AuxLoss = field(default_factory=lambda: AuxLoss(k=512))

    def __post_init__(self) -> None:
        check_choice("variant", self.variant, ("batch_topk",))
        _check_topk(self)


@dataclass(frozen=True)
class JumpReluConfig:
    """JumpReLU (Rajamanoharan et al. 2024): ``pre * (pre > theta)`` with ``pre = relu(x W_enc + b_enc)``.

    Every latent learns ``theta`` itself (not its logarithm) from the pre-activations within half a bandwidth of it.

    Attributes:
        variant: "jump_relu".
        n_latents: number of latents.
        l0_weight: factor of the sparsity term; a higher one makes codes sparser and the reconstruction worse.
        target_l0: None: the sparsity term is L0, the mean number of active latents a row. A number: it is
            ``(L0 / target_l0 - 1)^2``, which draws L0 to that number from both sides.
        bandwidth: width of the rectangle kernel in the gradient of ``theta``, in the unit of pre-activations.
        initial_threshold: ``theta`` of every latent at the start.
        dead_after_samples: training rows without being active after which a latent is dead.
        inputs: scaling of the rows; the paper standardises them.

    Example:
        >>> JumpReluConfig("jump_relu", n_latents=8192).l0_weight
        0.001
    """

    variant: Literal["jump_relu"]
    n_latents: int
    l0_weight: float = 1e-3
    target_l0: float | None = None
    bandwidth: float = 1e-3
    initial_threshold: float = 1.0
    dead_after_samples: int = 10_000_000
    inputs: InputScaling = field(default_factory=lambda: InputScaling(standardise=True))

    def __post_init__(self) -> None:
        check_choice("variant", self.variant, ("jump_relu",))
        _check_common(self)
        check_number("l0_weight", self.l0_weight, at_least=0.0)
        if self.target_l0 is not None:
            check_number("target_l0", self.target_l0, above=0.0)
            if self.target_l0 > self.n_latents:
                raise InputError("target_l0", self.target_l0, f"at most n_latents, {self.n_latents}")
        check_number("bandwidth", self.bandwidth, above=0.0)
        check_number("initial_threshold", self.initial_threshold, at_least=0.0)
        check_number("dead_after_samples", self.dead_after_samples, at_least=1, integer=True)


@dataclass(frozen=True)
class VanillaConfig:
    """Vanilla: ``relu((x - b_dec) W_enc + b_enc)``, made sparse by an L1 term.

    Attributes:
        variant: "vanilla".
        n_latents: number of latents.
        l1_weight: factor of L1, the sum over latents of a row's activations; a higher one makes codes sparser, smaller.
        dead_after_samples: training rows without being active after which a latent is dead.
        inputs: scaling of the rows.

    Example:
        >>> VanillaConfig("vanilla", n_latents=8192).l1_weight
        0.0001
    """

    variant: Literal["vanilla"]
    n_latents: int
    l1_weight: float = 1e-4
    dead_after_samples: int = 10_000_000
    inputs: InputScaling = field(default_factory=InputScaling)

    def __post_init__(self) -> None:
        check_choice("variant", self.variant, ("vanilla",))
        _check_common(self)
        check_number("l1_weight", self.l1_weight, at_least=0.0)
        check_number("dead_after_samples", self.dead_after_samples, at_least=1, integer=True)


VARIANT_TITLES = {"topk": "TopK", "batch_topk": "BatchTopK", "jump_relu": "JumpReLU", "vanilla": "Vanilla"}
SaeConfig: TypeAlias = TopKConfig | BatchTopKConfig | JumpReluConfig | VanillaConfig
SAE_CONFIGS = "a TopKConfig, BatchTopKConfig, JumpReluConfig or VanillaConfig"  # for the texts of errors


def _check_common(config: SaeConfig) -> None:
    check_number("n_latents", config.n_latents, at_least=1, integer=True)
    check_type("inputs", config.inputs, InputScaling, "an InputScaling")


def _check_topk(config: TopKConfig | BatchTopKConfig) -> None:
    _check_common(config)
    check_number("k", config.k, at_least=1, integer=True)
    if config.k > config.n_latents:
        raise InputError("k", config.k, f"at most n_latents, {config.n_latents}")
    check_type("aux", config.aux, AuxLoss, "an AuxLoss")
