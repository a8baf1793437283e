"""The sparse autoencoder: scale, encode, activate, decode, and scale back."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from monoloss.checks import check_number, check_type
from monoloss.checks.tensors import check_matrix, check_same_device, check_vector
from monoloss.errors import InputError
from monoloss.precision import autocast_off, product_dtype
from monoloss.sae.activations import BatchTopK, JumpRelu, TopK, positive_entries
from monoloss.sae.config import SAE_CONFIGS, BatchTopKConfig, JumpReluConfig, SaeConfig, TopKConfig, VanillaConfig
from monoloss.sae.folder import SaeFolderMixin
from monoloss.sae.idle import LongestIdle
from monoloss.sae.scaling import ScaledInputs, scale_inputs
from monoloss.sae.stored_linear import stored_linear
from monoloss.sparse import Activations, SparseActivations
from monoloss.sparse.products import codes_matmul
from monoloss.waiting import may_branch

# At inference smaller batches are padded: their products sum in another order, and the code of a row would differ
_MIN_ROWS_OF_A_PRODUCT = 64
_SPARSE_UP_TO = 1 / 16  # share of stored entries; on a CPU core a sparse step is as fast as a dense one at about 1 / 5
MIN_CALIBRATION_ROWS = 4096


class SaeOutput(NamedTuple):
    """Output of a sparse autoencoder for ``n`` input rows.

    Attributes:
        codes: activations of the latents, ``(n, m)``: sparse for TopK and BatchTopK; for JumpReLU and Vanilla sparse
            where at most one entry in 16 is stored, else dense. Stored entries may be 0: those just below the
            thresholds of JumpReLU, which have a gradient from them, and on a GPU those that fill up the ``k n`` of
            BatchTopK.
        reconstruction: the rebuilt rows, in the space of ``target``, ``(n, d_in)``.
        target: the rows to rebuild: the inputs, at length 1 if ``config.inputs.unit_norm``, ``(n, d_in)``.
        pre_activations: input of the activation, ``(n, m)``; without a graph beside sparse codes, whose graph goes
            through their stored entries alone.
        scale: factor of the decoder's output for each row, ``(n, 1)`` or a scalar.
        scaled: input of the encoder, ``(n, d_in)``.
    """

    codes: Activations
    reconstruction: Float[Tensor, "n d_in"]
    target: Float[Tensor, "n d_in"]
    pre_activations: Float[Tensor, "n m"]
    scale: Tensor
    scaled: Float[Tensor, "n d_in"]


class SparseAutoencoder(nn.Module, SaeFolderMixin):
    """A sparse autoencoder of any variant; the configuration chooses its activation and the scaling of its inputs.

    ``codes = activation((s(x) - b_dec) W_enc + b_enc)``, ``reconstruction = s^-1(codes W_dec + b_dec)``; BatchTopK has
    no encoder bias, and JumpReLU does not subtract ``b_dec`` from its inputs. Weights start as in the authors' runs:
    ``W_enc`` uniform within ``sqrt(6 / m)``, the decoder's rows its columns at length 1, biases 0. The input scaling
    ``s`` is part of the model.

    Args:
        d_in: width of the input rows.
        config: the variant and its sizes.
        input_mean: mean vector ``(d_in,)`` of the (unit) training rows; if and only if ``config.inputs.center``.
        seed: of the initial weights; they depend on nothing else.

    Raises:
        InputError: sizes out of range; ``input_mean`` missing, or given without ``config.inputs.center``; at the call,
            rows of another width or device, on the CPU also rows that cannot be scaled to length 1.

    Source:
        TopK: Gao et al. 2024, arXiv 2406.04093. BatchTopK: Bussmann et al. 2024, arXiv 2412.06410. JumpReLU:
        Rajamanoharan et al. 2024, arXiv 2407.14435. Settings: arXiv 2602.12403.

    Example:
        >>> from monoloss import TopKConfig
        >>> sae = SparseAutoencoder(8, TopKConfig("topk", n_latents=16, k=2))
        >>> sae.encode(torch.randn(3, 8)).shape
        (3, 16)
    """

    samples_since_active: Tensor
    input_mean: Tensor | None

    def __init__(
        self, d_in: int, config: SaeConfig, *, input_mean: Float[Tensor, " d_in"] | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        check_type("config", config, SaeConfig, SAE_CONFIGS)
        check_number("d_in", d_in, at_least=2 if config.inputs.standardise else 1, integer=True)
        if config.inputs.center != (input_mean is not None):
            expected = "a mean vector" if config.inputs.center else "none, because config.inputs.center is off"
            raise InputError("input_mean", "None" if input_mean is None else "a mean vector", expected)
        if input_mean is not None:
            check_vector("input_mean", input_mean, d_in)
            input_mean = input_mean.detach().to(torch.float32).clone()
        self.d_in, self.config = d_in, config
        m = config.n_latents
        try:  # the weights of a latent are contiguous, as in the decoder: sparse products read and write whole latents
            self.encoder_weight = nn.Parameter(_initial_weight(d_in, m, seed).t().contiguous().t())
        except RuntimeError as error:
            raise InputError("config.n_latents", m, f"what fits into the memory at a width of {d_in}") from error
        self.encoder_bias = None if isinstance(config, BatchTopKConfig) else nn.Parameter(torch.zeros(m))
        tied = isinstance(config, TopKConfig) and config.tied
        self.decoder_weight = None if tied else nn.Parameter(self.encoder_weight.detach().t().clone())
        self.decoder_bias = nn.Parameter(torch.zeros(d_in))
        self.activation = _activation_of(config)
        self.register_buffer("input_mean", input_mean)
        self.register_buffer("samples_since_active", torch.zeros(m, dtype=torch.int64))
        self._longest_idle = LongestIdle(self.samples_since_active)
        self.constrain_()

    @property
    def decoder_rows(self) -> Float[Tensor, "m d_in"]:
        """Direction of each latent in the reconstruction, ``(m, d_in)``; the columns of the encoder if tied."""
        return self.encoder_weight.t() if self.decoder_weight is None else self.decoder_weight

    @property
    def dead(self) -> Bool[Tensor, " m"]:
        """Mask ``(m,)`` of the latents that were not active on the last ``dead_after_samples`` training rows."""
        return self.samples_since_active >= self._dead_after

    @property
    def _dead_after(self) -> int:
        config = self.config
        limits = config.aux if isinstance(config, TopKConfig | BatchTopKConfig) else config
        return limits.dead_after_samples

    @property
    def may_have_dead(self) -> bool:
        """Whether a latent may be dead. On a GPU known from the rows counted so far, without waiting; True if unknown.

        Exact after `read_idle`.
        """
        if may_branch(self.samples_since_active.device):
            return bool(self.dead.any())
        bound = self._longest_idle.bound(self.samples_since_active)
        return bound is None or bound >= self._dead_after

    def read_idle(self) -> None:
        """Read from a GPU how long latents have been idle, so that `may_have_dead` is exact for now. Waits for it."""
        if not may_branch(self.samples_since_active.device):
            self._longest_idle.read(self.samples_since_active)

    def scale(self, inputs: Float[Tensor, "n d_in"]) -> ScaledInputs:
        """Scale input rows by each step of ``config.inputs``, in the precision of the weights, at least float32."""
        check_matrix("inputs", inputs, width=self.d_in)
        check_same_device("inputs", inputs.device, "the model", self.encoder_weight.device)
        rows = inputs.to(product_dtype(self.encoder_weight.dtype))
        return scale_inputs(rows, self.config.inputs, self.input_mean)

    def pre_activations(
        self, scaled: Float[Tensor, "n d_in"], latents: Int[Tensor, " _"] | None = None
    ) -> Float[Tensor, "n _"]:
        """Return ``(scaled - b_dec) W_enc + b_enc``, ``(n, m)``, or only the columns of ``latents``, in their order.

        Runs in the precision of autocast, except for JumpReLU, whose bandwidth half types cannot resolve.
        """
        n_rows = scaled.shape[0]
        if not self.training and n_rows < _MIN_ROWS_OF_A_PRODUCT:
            padded = nn.functional.pad(scaled, (0, 0, 0, _MIN_ROWS_OF_A_PRODUCT - n_rows))
            return self.pre_activations(padded, latents)[:n_rows]
        is_jump_relu = isinstance(self.activation, JumpRelu)
        rows = scaled if is_jump_relu else scaled - self.decoder_bias
        weight: Tensor = self.encoder_weight
        bias: Tensor | None = self.encoder_bias
        if latents is not None:
            weight, bias = weight.t()[latents].t(), None if bias is None else bias[latents]
        weight = weight.to(rows.dtype)  # float32, also of a model in half precision
        with autocast_off(rows.device) if is_jump_relu else nullcontext():
            return nn.functional.linear(rows, weight.t(), None if bias is None else bias.to(rows.dtype))

    def encode(self, inputs: Float[Tensor, "n d_in"]) -> SparseActivations:
        """Return the codes of input rows, ``(n, m)``, always sparse, values >= 0.

        In ``eval()`` the code of a row does not depend on the other rows of the batch.
        """
        codes, _ = self.activate(self.scale(inputs).scaled, sparse_up_to=1.0, near=self.training)
        return codes if isinstance(codes, SparseActivations) else SparseActivations.from_dense(codes)

    def decode(self, codes: Activations) -> Float[Tensor, "n d_in"]:
        """Return ``codes W_dec + b_dec``, ``(n, d_in)``: reconstructions of the scaled rows.

        The product runs in at least float32, under autocast too.
        """
        if isinstance(codes, SparseActivations):
            return codes_matmul(codes, self.decoder_rows) + self.decoder_bias
        check_matrix("codes", codes, width=self.config.n_latents)
        dtype = product_dtype(codes.dtype, self.decoder_rows.dtype)
        with autocast_off(codes.device):
            return codes.to(dtype) @ self.decoder_rows.to(dtype) + self.decoder_bias

    def forward(self, inputs: Float[Tensor, "n d_in"]) -> SaeOutput:
        """Encode and reconstruct input rows ``(n, d_in)``; the reconstruction is in the space of ``target``."""
        scaled, target, shift, scale = self.scale(inputs)
        codes, pre_activations = self.activate(scaled)
        return SaeOutput(codes, self.decode(codes) * scale + shift, target, pre_activations, scale, scaled)

    def activate(
        self, scaled: Float[Tensor, "n d_in"], *, sparse_up_to: float = _SPARSE_UP_TO, near: bool = True
    ) -> tuple[Activations, Float[Tensor, "n m"]]:
        """Return codes and pre-activations of scaled rows; sparse codes have a graph at their stored entries alone.

        Args:
            scaled: ``scaled`` of `scale`, ``(n, d_in)``.
            sparse_up_to: with more than this share of active entries the codes of JumpReLU and Vanilla are dense.
            near: where gradients are on, also store entries just below the thresholds of JumpReLU, with code 0: the
                thresholds have a gradient from them.
        """
        always_stored = isinstance(self.activation, TopK | BatchTopK)  # then the graph begins at the stored entries
        with torch.no_grad() if always_stored else nullcontext():
            pre_activations = self.pre_activations(scaled)
        most = int(sparse_up_to * pre_activations.numel())
        codes = self._stored(pre_activations.detach(), most, near and torch.is_grad_enabled())
        if codes is None:
            return self.activation(pre_activations), pre_activations
        if torch.is_grad_enabled():
            codes = self.on_graph(codes, scaled)
        return self.activation(codes) if isinstance(self.activation, JumpRelu) else codes, pre_activations.detach()

    def on_graph(self, codes: SparseActivations, scaled: Float[Tensor, "n d_in"]) -> SparseActivations:
        """Return ``codes``, pre-activations of ``scaled`` rows at some entries, on the graph of encoder and rows."""
        shift = None if isinstance(self.activation, JumpRelu) else self.decoder_bias
        return stored_linear(codes, scaled, shift, self.encoder_weight.t().to(scaled.dtype), self.encoder_bias)

    def _stored(self, pre_activations: Tensor, most: int, near: bool) -> SparseActivations | None:
        """Return the entries to store, for JumpReLU before the jump; None where more than ``most`` are active."""
        if isinstance(self.activation, JumpRelu):
            return self.activation.stored(pre_activations, most, near=near)
        if isinstance(self.activation, TopK | BatchTopK):
            codes: SparseActivations = self.activation(pre_activations)
            return codes
        return positive_entries(pre_activations, most)

    @torch.no_grad()
    def calibrate_(self, inputs: Iterable[Float[Tensor, "_ d_in"]]) -> None:
        """Set the threshold that BatchTopK has at inference; does nothing for the other variants.

        Args:
            inputs: batches of training rows, at least 4096 rows together, or the whole training set.
        """
        if isinstance(self.activation, BatchTopK):
            batches = list(inputs)
            n_rows = sum(len(rows) for rows in batches)
            if n_rows == 0:
                expected = f"training rows, at least {MIN_CALIBRATION_ROWS} or all there are"
                raise InputError("inputs", "no rows", expected)
            self.activation.calibrate_((self.pre_activations(self.scale(rows).scaled) for rows in batches), n_rows)

    @torch.no_grad()
    def count_activity_(self, codes: Activations) -> None:
        """Update ``samples_since_active`` from the codes of a training batch; for training loops, once a batch."""
        if isinstance(codes, SparseActivations):
            strongest = codes.values.new_zeros(codes.n_latents)
            active = strongest.scatter_reduce_(0, codes.flat_indices, codes.flat_values.detach(), "amax") > 0
        else:
            active = (codes > 0).any(0)
        before = self._longest_idle.bound(self.samples_since_active)
        self.samples_since_active.add_(codes.shape[0]).masked_fill_(active, 0)
        self._longest_idle.add(self.samples_since_active, codes.shape[0], before)

    @torch.no_grad()
    def project_decoder_gradient_(self) -> None:
        """Remove from the decoder's gradient the part along each (unit) row; for training loops, before the step."""
        if self.decoder_weight is not None and self.decoder_weight.grad is not None:
            grad, rows = self.decoder_weight.grad, self.decoder_weight
            grad.addcmul_(rows, torch.linalg.vecdot(grad, rows)[:, None], value=-1.0)

    @torch.no_grad()
    def constrain_(self) -> None:
        """Set decoder rows to length 1 (if untied) and thresholds to >= 0; for training loops, after every step."""
        if isinstance(self.activation, JumpRelu):
            self.activation.threshold.clamp_(min=0.0)
        if self.decoder_weight is not None:
            self.decoder_weight.div_(torch.linalg.vector_norm(self.decoder_weight, dim=1, keepdim=True))

    @torch.no_grad()
    def redraw_(self, latents: Bool[Tensor, " m"], seed: int) -> None:
        """Reinitialise the latents of a mask ``(m,)`` with weights of ``seed``, and count them as just active."""
        fresh = _initial_weight(self.d_in, self.config.n_latents, seed).to(self.encoder_weight)
        self.encoder_weight[:, latents] = fresh[:, latents]
        if self.encoder_bias is not None:
            self.encoder_bias[latents] = 0.0
        if self.decoder_weight is not None:
            self.decoder_weight[latents] = nn.functional.normalize(fresh[:, latents].t(), dim=1)
        if isinstance(self.activation, JumpRelu):
            self.activation.threshold[latents] = self.activation.initial_threshold
        self.samples_since_active[latents] = 0


def _initial_weight(d_in: int, m: int, seed: int) -> Tensor:
    """Draw an encoder weight ``(d_in, m)``, uniform within ``sqrt(6 / m)``: on the CPU, the same for every device."""
    weight = torch.empty(d_in, m, device="cpu")
    nn.init.kaiming_uniform_(weight, generator=torch.Generator().manual_seed(seed))
    return weight.to(torch.get_default_device())


def _activation_of(config: SaeConfig) -> nn.Module:
    """Build the activation module of a configuration."""
    match config:
        case TopKConfig():
            return TopK(config.k)
        case BatchTopKConfig():
            return BatchTopK(config.k)
        case JumpReluConfig():
            return JumpRelu(config.n_latents, config.bandwidth, config.initial_threshold)
        case VanillaConfig():
            return nn.ReLU()
