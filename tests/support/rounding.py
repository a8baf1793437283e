"""Another processor, imitated: products and reductions differ by at most one unit in the last place.

Processors sum in different orders and fuse multiplication with addition or not, so the same call gives other bits
elsewhere. While ``OtherRounding`` is active, results of such calls move by -1, 0 or +1 units in the last place, as a
fixed function of the operation, the shapes of its arguments and the bits of the result: the same call gives the same
bits again, the same rows in a batch of another size do not. A test that takes two routes to one value for equal fails
under it.

``make test ROUNDING=1`` runs the whole suite so. Child processes and threads do not inherit it: a child whose bits are
compared with its parent's calls ``start_if_asked`` first.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Names without namespace, overload and trailing underscore. Element-wise operations, `index_add`, `scatter`, `cumsum`
# and the optimisers' fused steps are left alone: they round in one way everywhere, or are not vectorised.
PRODUCTS = {
    "_sparse_mm", "_sparse_mm_reduce_impl", "_trilinear", "addbmm", "addmm", "addmv", "baddbmm",
    "bmm", "cdist", "csr_matmul", "csr_sampled_matmul", "dot", "inner", "linear", "matmul", "mm", "mv",
    "sparse_sampled_addmm", "tensordot", "vdot",
}  # fmt: skip
REDUCTIONS = {
    "_embedding_bag", "_embedding_bag_forward_only", "_embedding_bag_per_sample_weights_backward", "embedding_bag",
    "linalg_norm", "linalg_vector_norm", "logsumexp", "mean", "nanmean", "nansum", "norm", "std", "std_mean", "sum",
    "var", "var_mean",
}  # fmt: skip
LAYERS = {
    "_adaptive_avg_pool2d", "_adaptive_avg_pool2d_backward", "_log_softmax", "_log_softmax_backward_data",
    "_scaled_dot_product_flash_attention_for_cpu", "_softmax", "_softmax_backward_data", "avg_pool2d",
    "avg_pool2d_backward", "binary_cross_entropy", "convolution", "convolution_backward", "l1_loss", "log_softmax",
    "mkldnn_convolution", "mse_loss", "native_batch_norm", "native_batch_norm_backward", "native_group_norm",
    "native_group_norm_backward", "native_layer_norm", "native_layer_norm_backward", "nll_loss_forward",
    "scaled_dot_product_attention", "softmax",
}  # fmt: skip
ROUNDED = PRODUCTS | REDUCTIONS | LAYERS

_BITS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}
_FACTOR = 0x9E3779B97F4A7C15 - 2**64  # 2^64 / golden ratio, odd: spreads the bits of a number over all 64


class OtherRounding(TorchDispatchMode):
    """Move the results of products and reductions by at most one unit in the last place.

    Left alone are results of arguments that hold nothing but integers (they are exact in any order), sums of a single
    element, zeros, NaN and infinity.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2].rstrip("_")
        if name in ROUNDED:
            inputs = args, {key: value for key, value in (kwargs or {}).items() if key != "out"}
            given = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
            moved = [leaf for leaf in tree_leaves(result) if type(leaf) in (Tensor, torch.nn.Parameter)]
            alone = name in REDUCTIONS and all(each.numel() == given[0].numel() for each in moved)
            if not alone and not all(map(_holds_integers, given)):
                seed = _seed(name, [tuple(each.shape) for each in given])
                for each in moved:
                    _move(each.values() if each.layout == torch.sparse_csr else each, seed)
        return result


def _holds_integers(tensor: Tensor) -> bool:
    if tensor.is_meta or not tensor.dtype.is_floating_point:
        return True
    values = tensor.values() if tensor.layout == torch.sparse_csr else tensor
    return bool((values == values.round()).all())


def _seed(name: str, shapes: list[tuple[int, ...]]) -> int:
    digest = hashlib.blake2b(repr((name, shapes)).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


def _move(tensor: Tensor, seed: int) -> None:
    """Add -1, 0 or +1 to the bits of each number, in place."""
    if tensor.dtype not in _BITS or tensor.is_meta or tensor.numel() == 0:
        return
    bits = tensor.detach().contiguous().view(_BITS[tensor.dtype])
    step = ((bits.long() * _FACTOR + seed) * _FACTOR >> 33) % 3 - 1
    step = step.where(tensor.isfinite() & (tensor != 0), 0)
    tensor.copy_((bits + step.to(bits.dtype)).view(tensor.dtype))


def start_if_asked() -> OtherRounding | None:
    """Round otherwise from now on, in this thread, where ``ROUNDING=1`` asks for it."""
    return OtherRounding().__enter__() if os.environ.get("ROUNDING") == "1" else None
