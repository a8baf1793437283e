"""The paper's algorithms on dense tensors: the score in two passes, and the training step with MonoLoss by autograd.

Written from the formulas, with weights and settings of a :class:`monoloss.SparseAutoencoder`, so that both do the same
work from the same start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from monoloss.benchmark.pairwise import loss, scaled, score
from monoloss.errors import InputError
from monoloss.sae.config import BatchTopKConfig, TopKConfig
from monoloss.sae.model import SparseAutoencoder

ADAM_EPS = 6.25e-10  # as in the paper's runs, and the default of SaeTraining


class DensePass(NamedTuple):
    """What a dense SAE makes of some rows.

    Attributes:
        codes: ``(n, m)``, nearly all 0.
        reconstruction: ``(n, d)``.
        target: the unit rows that are rebuilt, ``(n, d)``.
    """

    codes: Float[Tensor, "n m"]
    reconstruction: Float[Tensor, "n d"]
    target: Float[Tensor, "n d"]


class DenseSae(nn.Module):
    """TopK or BatchTopK with codes as dense tensors; starts with copies of the weights of a SAE.

    Args:
        sae: whose weights and settings to take. Rows are scaled to length 1, and standardised where it does so.

    Raises:
        InputError: another variant, or settings that the paper's runs do not have.
    """

    def __init__(self, sae: SparseAutoencoder) -> None:
        super().__init__()
        config = sae.config
        usual = isinstance(config, TopKConfig | BatchTopKConfig) and config.inputs.unit_norm
        if not usual or config.inputs.center or sae.decoder_weight is None:
            raise InputError("sae", repr(config), "an untied TopK or BatchTopK on unit rows, not centred")
        assert isinstance(config, TopKConfig | BatchTopKConfig)  # noqa: S101 - for the type checker
        self.config = config
        self.encoder_weight = nn.Parameter(sae.encoder_weight.detach().clone(memory_format=torch.contiguous_format))
        self.encoder_bias = None if sae.encoder_bias is None else nn.Parameter(sae.encoder_bias.detach().clone())
        self.decoder_weight = nn.Parameter(sae.decoder_weight.detach().clone())
        self.decoder_bias = nn.Parameter(sae.decoder_bias.detach().clone())
        self.register_buffer("samples_since_active", sae.samples_since_active.clone())
        self.samples_since_active: Tensor

    def forward(self, inputs: Float[Tensor, "n d"]) -> DensePass:
        """Scale, encode, keep the largest, decode, scale back."""
        x, target, shift, spread = self._scaled(inputs)
        codes = self._largest(self._pre_activations(x))
        rebuilt = torch.addmm(self.decoder_bias, codes, self.decoder_weight)
        return DensePass(codes, rebuilt * spread + shift, target)

    def as_in_training(self, inputs: Float[Tensor, "n d"]) -> tuple[DensePass, Float[Tensor, "3"]]:
        """The forward pass of plain training code, which evaluation calls as well: error, L1 and L0 too.

        The same codes; the ReLU runs over all pre-activations, and how long each latent has been silent is counted.
        """
        x, target, shift, spread = self._scaled(inputs)
        codes = self._largest(self._pre_activations(x).relu())
        reconstruction = (codes @ self.decoder_weight + self.decoder_bias) * spread + shift
        active = codes > 0
        self.samples_since_active.add_(len(inputs)).masked_fill_(active.any(0), 0)
        measures = [(reconstruction - target).square().mean(), codes.abs().sum(1).mean(), active.float().sum(1).mean()]
        return DensePass(codes, reconstruction, target), torch.stack(measures)

    def _scaled(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        target = normalize(inputs)
        shift, spread = target.new_zeros(()), target.new_ones(())
        if self.config.inputs.standardise:
            shift, spread = target.mean(1, keepdim=True), target.std(1, keepdim=True) + 1e-5
        return (target - shift) / spread - self.decoder_bias, target, shift, spread

    def _pre_activations(self, x: Tensor) -> Tensor:
        bias = self.encoder_bias
        return x @ self.encoder_weight if bias is None else torch.addmm(bias, x, self.encoder_weight)

    def _largest(self, pre_activations: Tensor) -> Tensor:
        """TopK: the k largest of each row; BatchTopK: the k n largest of the batch. All through a ReLU, the rest 0."""
        if isinstance(self.config, BatchTopKConfig):
            flat = pre_activations.relu().flatten()
            top = flat.topk(self.config.k * len(pre_activations), sorted=False)
            return torch.zeros_like(flat).scatter(0, top.indices, top.values).view_as(pre_activations)
        top = pre_activations.topk(self.config.k, dim=1, sorted=False)
        return torch.zeros_like(pre_activations).scatter(1, top.indices, top.values.relu())


def dense_scores(u: Float[Tensor, " m"], v: Float[Tensor, " m"], w: Float[Tensor, "m d"]) -> Float[Tensor, " m"]:
    """The paper's linear form, ``(|w|^2 - v) / (u^2 - v)``; NaN where fewer than two rows have weight."""
    weight = u.square() - v
    residue = 8 * torch.finfo(u.dtype).eps * u.detach().square()  # what rounding leaves of a single row
    return score(w.square().sum(1) - v, torch.where(weight > residue, weight, 0.0))


def dense_mono_loss(embeddings: Float[Tensor, "n d"], activations: Float[Tensor, "n m"]) -> Float[Tensor, ""]:
    """MonoLoss of a batch by dense products and autograd: one minus the mean score."""
    a = scaled(activations)
    return loss(dense_scores(a.sum(0), a.square().sum(0), a.t() @ normalize(embeddings)))


class TwoPassSums:
    """What two passes add up, in one place that a second run uses again.

    Args:
        d: width of the embeddings.
        m: number of latents.
        dtype: of the sums.
    """

    def __init__(self, d: int, m: int, dtype: torch.dtype = torch.float32) -> None:
        self.low, self.high, self.u, self.v = torch.zeros(4, m, dtype=dtype).unbind()
        self.w = torch.zeros(m, d, dtype=dtype)

    def reset(self) -> None:
        """As before the first pass."""
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
    """The paper's algorithm: a pass for the minimum and maximum of each latent, and one for the sums of scaled codes.

    Args:
        embeddings: the batches.
        codes_of: dense codes ``(n, m)`` of the batch with a number; asked for in both passes. With codes at hand it
            returns them; for a SAE it is a whole dense pass.
        sums: where to add up; what is in it is dropped.
        in_place: make as few tensors of the size of the codes or the sums as there is need for; False: a new one for
            each step, as the formulas read.

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
    """The score of a SAE's latents in two passes, each with a whole dense SAE pass, decoder too.

    Args:
        sae: the model.
        batches: its inputs, and the embeddings.
        sums: where to add up.
        lean: no more than the score needs, in as little memory as it needs; False: plain code, with the forward pass of
            training in each pass, as research code often does.
    """

    def codes_of(i: int) -> Tensor:
        found = sae(batches[i]) if lean else sae.as_in_training(batches[i])[0]
        return found.codes

    return two_pass_score(batches, codes_of, sums, in_place=lean)


class DenseTraining:
    """The training step on dense tensors: the paper's losses and settings, everything by autograd.

    TopK: per-row normalised squared error; BatchTopK: mean squared error. Then MonoLoss, if any; the decoder's gradient
    along its rows removed; gradient norm clipped at 1; Adam; decoder rows at length 1. The aux loss is left out: it is
    0 as long as no latent is dead, and none is within ten million rows.

    Args:
        sae: the model.
        mono_loss: of embeddings and dense codes: :func:`dense_mono_loss`, or :func:`pairwise_loss`; None for none.
        mono_weight: its factor.
        lr: of Adam.
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
        """Train on one batch; returns its loss. The clipped gradients stay on the parameters."""
        sae = self.sae
        codes, reconstruction, target = sae(inputs)
        squared = (reconstruction - target).square()
        total: Tensor
        if isinstance(sae.config, TopKConfig):
            total = (squared.sum(1) / target.square().sum(1)).mean()
        else:
            total = squared.mean()
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
        return total.detach()
