"""The paper's algorithms on dense tensors: the score in two passes, and the training step with MonoLoss by autograd.

Written from the formulas. Weights and settings are copied from a :class:`monoloss.SparseAutoencoder`, so that both do
the same work from the same initial weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from monoloss.benchmark.pairwise import loss, scaled, score
from monoloss.errors import InputError
from monoloss.sae.config import BatchTopKConfig, JumpReluConfig, TopKConfig, VanillaConfig
from monoloss.sae.model import SparseAutoencoder

ADAM_EPS = 6.25e-10  # as in the paper's runs, and the default of SaeTraining


class DensePass(NamedTuple):
    """Output of a dense SAE."""

    codes: Float[Tensor, "n m"]
    """Activations of the latents, nearly all 0."""
    reconstruction: Float[Tensor, "n d"]
    target: Float[Tensor, "n d"]
    """Unit rows that the reconstruction approximates."""
    penalty: Float[Tensor, ""]
    """Weighted sparsity term of the loss: of L0 for JumpReLU, of L1 for Vanilla, else 0."""


class DenseSae(nn.Module):
    """SAE of any variant with codes as dense tensors, and gradients of the size of the codes.

    Args:
        sae: an untied SAE; its weights are copied. Rows are scaled to length 1, and standardised if `sae` does so.

    Raises:
        InputError: another variant, or settings that the paper's runs do not have.
    """

    def __init__(self, sae: SparseAutoencoder) -> None:
        super().__init__()
        config = sae.config
        if not config.inputs.unit_norm or config.inputs.center or sae.decoder_weight is None:
            raise InputError("sae", repr(config), "an untied SAE on unit rows, not centred")
        if isinstance(config, JumpReluConfig) and config.target_l0 is not None:
            raise InputError("sae", repr(config), "a JumpReLU without target_l0, as in the paper")
        self.config = config
        self.encoder_weight = nn.Parameter(sae.encoder_weight.detach().clone(memory_format=torch.contiguous_format))
        self.encoder_bias = None if sae.encoder_bias is None else nn.Parameter(sae.encoder_bias.detach().clone())
        self.decoder_weight = nn.Parameter(sae.decoder_weight.detach().clone())
        self.decoder_bias = nn.Parameter(sae.decoder_bias.detach().clone())
        thresholds = {name: nn.Parameter(value.detach().clone()) for name, value in sae.activation.named_parameters()}
        self.activation = nn.ParameterDict(thresholds)  # of JumpReLU; all parameters have the names of those of `sae`
        self.register_buffer("samples_since_active", sae.samples_since_active.clone())
        self.samples_since_active: Tensor

    def forward(self, inputs: Float[Tensor, "n d"]) -> DensePass:
        """Scale, encode, activate (TopK and BatchTopK: select the largest), decode, scale back."""
        x, target, shift, spread = self._scaled(inputs)
        codes, penalty = self._activated(self._pre_activations(x))
        reconstruction = torch.addmm(self.decoder_bias, codes, self.decoder_weight)
        return DensePass(codes, reconstruction * spread + shift, target, penalty)

    def as_in_training(self, inputs: Float[Tensor, "n d"]) -> tuple[DensePass, Float[Tensor, "3"]]:
        """Return the pass of plain training code, and its mean squared error, L1 and L0.

        The result is that of `forward`, but the ReLU runs over all pre-activations, and `samples_since_active` is
        updated, as in research code that evaluates with its training pass.
        """
        x, target, shift, spread = self._scaled(inputs)
        codes, penalty = self._activated(self._pre_activations(x).relu())
        reconstruction = (codes @ self.decoder_weight + self.decoder_bias) * spread + shift
        active = codes > 0
        self.samples_since_active.add_(len(inputs)).masked_fill_(active.any(0), 0)
        measures = [(reconstruction - target).square().mean(), codes.abs().sum(1).mean(), active.float().sum(1).mean()]
        return DensePass(codes, reconstruction, target, penalty), torch.stack(measures)

    def _scaled(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the encoder's input, the unit rows, and the mean and deviation that scale a reconstruction back."""
        target = normalize(inputs)
        shift, spread = target.new_zeros(()), target.new_ones(())
        if self.config.inputs.standardise:
            shift, spread = target.mean(1, keepdim=True), target.std(1, keepdim=True) + 1e-5
        scaled_rows = (target - shift) / spread
        x = scaled_rows if isinstance(self.config, JumpReluConfig) else scaled_rows - self.decoder_bias
        return x, target, shift, spread

    def _pre_activations(self, x: Tensor) -> Tensor:
        bias = self.encoder_bias
        return x @ self.encoder_weight if bias is None else torch.addmm(bias, x, self.encoder_weight)

    def _activated(self, pre_activations: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codes, and the weighted sparsity term of the loss."""
        match self.config:
            case JumpReluConfig(l0_weight=weight, bandwidth=bandwidth):
                codes, count = _JumpRelu.apply(pre_activations.relu(), self.activation["threshold"], bandwidth)
                return codes, weight * count / len(codes)
            case VanillaConfig(l1_weight=weight):
                codes = pre_activations.relu()
                return codes, weight * codes.sum() / len(codes)
        return self._largest(pre_activations), pre_activations.new_zeros(())

    def _largest(self, pre_activations: Tensor) -> Tensor:
        """Keep the k largest of each row (TopK) or the k n largest of the batch (BatchTopK), after a ReLU; others 0."""
        if isinstance(self.config, BatchTopKConfig):
            flat = pre_activations.relu().flatten()
            top = flat.topk(self.config.k * len(pre_activations), sorted=False)
            return torch.zeros_like(flat).scatter(0, top.indices, top.values).view_as(pre_activations)
        assert isinstance(self.config, TopKConfig)  # noqa: S101 - for the type checker
        top = pre_activations.topk(self.config.k, dim=1, sorted=False)
        return torch.zeros_like(pre_activations).scatter(1, top.indices, top.values.relu())


class _JumpRelu(torch.autograd.Function):
    """Codes ``pre * (pre > theta)`` and their number, with the straight-through gradient of theta.

    With the rectangle kernel K, 1 within half a bandwidth: ``-theta K / bandwidth`` of a code, ``-K / bandwidth`` of
    the number (arXiv 2407.14435). ``pre`` >= 0; entries of 0 take no part.
    """

    @staticmethod
    def forward(ctx: Any, pre: Tensor, theta: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
        active = pre > theta
        ctx.save_for_backward(pre, theta, active)
        ctx.bandwidth = bandwidth
        return pre * active, active.sum().to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, grad_codes: Tensor, grad_count: Tensor) -> tuple[Tensor, Tensor, None]:
        pre, theta, active = ctx.saved_tensors
        kernel = ((pre - theta).abs() < ctx.bandwidth / 2) & (pre > 0)
        grad_theta = ((theta * grad_codes + grad_count) * kernel).sum(0) / -ctx.bandwidth
        return grad_codes * active, grad_theta, None


def dense_scores(u: Float[Tensor, " m"], v: Float[Tensor, " m"], w: Float[Tensor, "m d"]) -> Float[Tensor, " m"]:
    """Compute scores by the paper's linear form, ``(|w|^2 - v) / (u^2 - v)``; NaN where fewer than two rows are active.

    With scaled activations a and unit rows h: ``u = sum a``, ``v = sum a^2``, ``w = sum a h``.
    """
    weight = u.square() - v
    residue = 8 * torch.finfo(u.dtype).eps * u.detach().square()  # rounding error where one row is active
    return score(w.square().sum(1) - v, torch.where(weight > residue, weight, 0.0))


def dense_mono_loss(embeddings: Float[Tensor, "n d"], activations: Float[Tensor, "n m"]) -> Float[Tensor, ""]:
    """Compute MonoLoss of a batch, one minus the mean score, by dense products."""
    a = scaled(activations)
    return loss(dense_scores(a.sum(0), a.square().sum(0), a.t() @ normalize(embeddings)))


class TwoPassSums:
    """Buffers of the two passes: minimum and maximum of each latent, and the sums u, v, w. Used again by later runs.

    Args:
        d: width of the embeddings.
        m: number of latents.
        dtype: dtype of all buffers.
        device: device of all buffers; None for the CPU.
    """

    def __init__(self, d: int, m: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> None:
        self.low, self.high, self.u, self.v = torch.zeros(4, m, dtype=dtype, device=device).unbind()
        self.w = torch.zeros(m, d, dtype=dtype, device=device)

    def reset(self) -> None:
        """Set all buffers to their state before the first pass."""
        self.low.fill_(torch.inf)
        self.high.fill_(-torch.inf)
        for total in (self.u, self.v, self.w):
            total.zero_()


@torch.no_grad()
def two_pass_score(
    embeddings: Sequence[Float[Tensor, "_ d"]],
    codes_of: Callable[[int], Tensor],
    sums: TwoPassSums,
    *,
    in_place: bool = True,
) -> Float[Tensor, " m"]:
    """Compute scores by the paper's algorithm: a pass for each latent's range, and one for the sums of scaled codes.

    Args:
        embeddings: batches of embeddings.
        codes_of: function from the number of a batch to its dense codes ``(n, m)``, called in both passes.
        sums: buffers, reset first.
        in_place: allocate as few tensors of the size of the codes or sums as possible; False: a new one for each
            step of the formulas.

    Returns:
        Scores ``(m,)``, NaN where undefined.
    """
    sums.reset()
    for i in range(len(embeddings)):
        codes = codes_of(i)
        torch.minimum(sums.low, codes.amin(0), out=sums.low)
        torch.maximum(sums.high, codes.amax(0), out=sums.high)
    spread = (sums.high - sums.low).clamp(min=torch.finfo(sums.high.dtype).tiny)
    for i, rows in enumerate(embeddings):
        a = (codes_of(i) - sums.low).div_(spread) if in_place else (codes_of(i) - sums.low) / spread
        sums.u += a.sum(0)
        sums.v += a.square().sum(0)
        if in_place:
            sums.w.addmm_(a.t(), normalize(rows))
        else:
            sums.w += a.t() @ normalize(rows)
    return dense_scores(sums.u, sums.v, sums.w)


def two_pass_score_of_sae(
    sae: DenseSae, batches: Sequence[Float[Tensor, "_ d"]], sums: TwoPassSums, *, lean: bool = True
) -> Float[Tensor, " m"]:
    """Score a SAE's latents by :func:`two_pass_score`, with a whole pass of the SAE, decoder too, in both passes.

    Args:
        sae: the model.
        batches: inputs of the model, which are the embeddings too.
        sums: buffers, reset first.
        lean: do only what the score needs, in as little memory as possible; False: plain code with the forward pass of
            training, as in much research code.
    """

    def codes_of(i: int) -> Tensor:
        """Return the dense codes of batch ``i``, computed anew in each pass."""
        output = sae(batches[i]) if lean else sae.as_in_training(batches[i])[0]
        return output.codes

    return two_pass_score(batches, codes_of, sums, in_place=lean)


class DenseTraining:
    """Training on dense tensors with the paper's losses and settings, all gradients by autograd.

    A step: squared error (TopK: of each row, divided by its squared length; others: mean) plus the sparsity term and
    MonoLoss; gradients, the decoder's without the part along its rows; norm of the gradients clipped at 1; Adam;
    decoder rows scaled to length 1, thresholds kept >= 0. Without the aux loss, which is 0 until a latent is dead, that
    is within the first ten million rows.

    Args:
        sae: the model.
        mono_loss: function of embeddings and dense codes, :func:`dense_mono_loss` or :func:`pairwise_loss`; None to
            train without MonoLoss.
        mono_weight: factor of MonoLoss.
        lr: learning rate of Adam.
    """

    def __init__(
        self,
        sae: DenseSae,
        mono_loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        mono_weight: float = 0.0,
        lr: float = 1e-4,
    ) -> None:
        self.sae, self.mono_loss, self.mono_weight = sae, mono_loss, mono_weight
        self.adam = torch.optim.Adam(sae.parameters(), lr=lr, eps=ADAM_EPS)

    def step(self, inputs: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        """Train on one batch and return its loss; the clipped gradients stay on the parameters."""
        sae = self.sae
        codes, reconstruction, target, penalty = sae(inputs)
        squared = (reconstruction - target).square()
        total: Tensor
        if isinstance(sae.config, TopKConfig):
            total = (squared.sum(1) / target.square().sum(1)).mean()
        else:
            total = squared.mean() + penalty
        if self.mono_loss is not None:
            total = total + self.mono_weight * self.mono_loss(target, codes)
        sae.samples_since_active.add_(len(inputs)).masked_fill_(codes.detach().amax(0) > 0, 0)
        self.adam.zero_grad()
        total.backward()
        decoder = sae.decoder_weight
        assert decoder.grad is not None  # noqa: S101 - it has just been computed
        with torch.no_grad():
            decoder.grad -= (decoder.grad * decoder).sum(1, keepdim=True) * decoder
        nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        self.adam.step()
        with torch.no_grad():
            decoder.div_(decoder.norm(dim=1, keepdim=True))
            for threshold in sae.activation.values():
                threshold.clamp_(min=0.0)
        return total.detach()
