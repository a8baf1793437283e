"""MonoLoss as a module: the batch loss, with an optional mean vector and an optional memory of earlier batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from monoloss.checks import check_number
from monoloss.checks.tensors import check_rows, check_vector
from monoloss.errors import InputError
from monoloss.functional.loss import Memory, batch_scores, loss_of, remembered_scores
from monoloss.functional.moments import unit_rows
from monoloss.precision import sums_device
from monoloss.sparse import Activations


class MonoLossResult(NamedTuple):
    """A loss and the scores behind it.

    Attributes:
        loss: scalar, on the graph.
        scores: detached score of each latent, ``(m,)``; NaN for latents that take no part in the loss.
    """

    loss: Float[Tensor, ""]
    scores: Float[Tensor, " m"]


class MonoLoss(nn.Module):
    """One minus the mean MonoScore of the batch, to be added to a task loss: ``task + mono_weight * criterion(e, z)``.

    ``L = 1 - mean_j s_j`` over the latents that have a score; see :func:`monoloss.mono_loss` for the gradient. The
    defaults are the paper's loss; two extensions are ours:

    - ``center`` takes a mean vector off the embeddings, so that latents are not drawn toward samples near the mean.
    - ``memory = g`` scores decayed sums ``T <- g T_old + batch`` instead of the batch alone: a batch has few active
      rows of a latent, the memory hundreds, at no extra pass. A latent takes part only while ``u^2 >= 2 v``, which
      keeps its score in [-1, 1]. Step ``t`` multiplies the gradient, not the value, by ``(1 - g^t) / (1 - g)``: one
      ``mono_weight`` means the same with and without memory.

    In ``eval()`` the loss is that of the local batch alone, and the memory does not change. In training, under
    ``torch.distributed``, the batch is that of all processes, and the gradient is multiplied by their number, because
    DistributedDataParallel averages. Autocast does not lower the precision.

    Args:
        center: mean vector ``(d,)`` of embeddings that are scaled as those of the calls; None to take nothing off.
        memory: ``g`` in [0, 1); 0 as in the paper. Above 0 activations must be >= 0.
        process_group: the processes that share a batch; None for all.

    Raises:
        InputError: at construction, values out of range; at the call, shapes that do not fit, and on the CPU rows or
            activations that cannot be scored, negative activations with memory.

    Source:
        arXiv 2602.12403 for the batch loss; ``center`` and ``memory`` are not in the paper.

    Example:
        >>> criterion = MonoLoss(memory=0.9)
        >>> activations = torch.tensor([[1.0], [1.0], [0.0]], requires_grad=True)
        >>> loss = criterion(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), activations)
        >>> round(loss.item(), 4)
        0.4
    """

    center: Tensor | None
    step: Tensor
    memory_u: Tensor
    memory_v: Tensor
    memory_w: Tensor

    def __init__(
        self,
        center: Float[Tensor, " d"] | None = None,
        memory: float = 0.0,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        check_number("memory", memory, at_least=0.0, below=1.0)
        if center is not None:
            check_vector("center", center)
            center = center.detach().clone()
        self.memory = memory
        self.process_group = process_group
        self.register_buffer("center", center)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        for name in ("memory_u", "memory_v", "memory_w"):  # take their sizes from the first batch
            self.register_buffer(name, torch.empty(0, dtype=torch.float64))

    def forward(self, embeddings: Float[Tensor, "n d"], activations: Activations) -> Float[Tensor, ""]:
        """Compute the loss of one batch: a scalar in [0, 2] on the graph; 1 if no latent has a score.

        Args:
            embeddings: ``(n, d)``, rows of any length but 0.
            activations: ``(n, m)``, dense or :class:`monoloss.SparseActivations`; >= 0 with memory.
        """
        return self.detailed(embeddings, activations).loss

    def detailed(self, embeddings: Float[Tensor, "n d"], activations: Activations) -> MonoLossResult:
        """Compute the loss and detached scores, for logging. Use it instead of a call: it too adds to the memory."""
        check_rows(embeddings, activations, self.center)
        if self.training and self.memory > 0:
            scores, defined = self._remember(embeddings, activations)
        else:
            scores, defined = batch_scores(
                embeddings, activations, center=self.center, process_group=self.process_group, sync=self.training
            )
        return MonoLossResult(loss_of(scores, defined), torch.where(defined, scores.detach(), torch.nan))

    def reset(self) -> None:
        """Clear the memory: the next batch is the first step."""
        self.step = torch.zeros_like(self.step)
        self.memory_u, self.memory_v, self.memory_w = (
            torch.empty(0, dtype=part.dtype, device=part.device)
            for part in (self.memory_u, self.memory_v, self.memory_w)
        )

    def extra_repr(self) -> str:
        """Return the arguments shown by ``print(module)``."""
        width = None if self.center is None else self.center.shape[0]
        return f"memory={self.memory}, center={'None' if width is None else f'({width},)'}"

    def _remember(self, embeddings: Tensor, activations: Activations) -> tuple[Tensor, Tensor]:
        """Add a batch to the memory and return its scores, 0 where undefined, and the mask of the defined ones."""
        m, d = activations.shape[1], embeddings.shape[1]
        if self.memory_w.numel() and self.memory_w.shape != (m, d):
            expected = "{} latents of width {}, as in earlier steps; or reset() before".format(*self.memory_w.shape)
            raise InputError("activations", f"{m} latents of width {d}", expected)
        memory = Memory(self.step, self.memory_u, self.memory_v, self.memory_w)
        h = unit_rows(embeddings, self.center)
        scores, defined, memory = remembered_scores(h, activations, memory, self.memory, self.process_group)
        self.step, self.memory_u, self.memory_v, self.memory_w = memory
        return scores, defined

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MonoLoss:
        """Move the buffers with the module, but leave the dtype of the sums as it is."""
        # .half() or .to(bfloat16) of a whole model must not lower the sums, which stay on a device with float64. So
        # `fn` is applied to the counter of steps alone, whose device the other buffers follow
        buffers = {name: buffer for name, buffer in self._buffers.items() if name != "step"}
        self._buffers = {"step": self.step}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call] # torch's, without types
        device = self.step.device
        for name, buffer in buffers.items():
            self._buffers[name] = None if buffer is None else _moved(buffer, device, summed=name != "center")
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in ("memory_u", "memory_v", "memory_w"):  # torch copies into buffers of the saved size only
            saved = state_dict.get(prefix + name)
            if saved is not None:
                self._buffers[name] = torch.empty_like(saved, device=sums_device(self.step.device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _moved(buffer: Tensor, device: torch.device, *, summed: bool) -> Tensor:
    """Move a sum to ``sums_device(device)``, the mean vector (not ``summed``) to ``device`` itself."""
    if summed or sums_device(device) == device:
        return buffer.to(sums_device(device))
    return buffer.to(device, torch.float32)
