"""Forms with a closed form: the truncated singular value decomposition of one unfolding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .budget import Budget, MultiplyAdds
from .covariance import unwhiten, whiten


def shares(values: Tensor) -> Tensor:
    """The share of energy in the first 1, 2, ... of the singular values; of a zero matrix, all."""
    energy = values.square().cumsum(0)
    return torch.ones_like(energy) if energy[-1] == 0 else energy / energy[-1]


def leading(unfolded: Tensor, rank: int) -> Tensor:
    """The first `rank` left singular vectors `[n, rank]` of `unfolded` `[n, m]`, orthonormal also where m < n."""
    if unfolded.shape[1] > unfolded.shape[0]:
        unfolded = torch.linalg.qr(unfolded.T, mode="r").R.T  # same left side, square
    return torch.linalg.svd(unfolded, full_matrices=rank > unfolded.shape[1]).U[:, :rank]


def separable(
    weight: Tensor, budget: Budget, *, stride: Sequence[int] = (1, 1), covariance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`weight` `[O, C, kh, kw]` -> vertical `[R, C, kh]`, horizontal `[O, R, kw]`: the best of that rank.

    The truncated SVD of the unfolding `(C * kh) x (O * kw)`, the root of the singular values on either side; full rank
    is `min(C * kh, O * kw)`.

    Source: Tai et al., "Convolutional Neural Networks with Low-Rank Regularization", ICLR 2016, theorem 1.
    """
    o, c, kh, kw = weight.shape
    white, inverse = whiten(weight, covariance)
    left, values, right = torch.linalg.svd(white.permute(1, 2, 0, 3).reshape(c * kh, o * kw), full_matrices=False)
    shape, full = tuple(weight.shape), values.numel()
    rank = budget.one(
        full, lambda r: MultiplyAdds.separable(shape, stride, r), MultiplyAdds.dense(shape), lambda: shares(values)
    )
    root = values[:rank].sqrt()
    vertical = (left[:, :rank] * root).T.reshape(rank, c, kh)
    horizontal = (root[:, None] * right[:rank]).reshape(rank, o, kw).transpose(0, 1)
    return unwhiten(vertical.transpose(1, 2), inverse).transpose(1, 2).contiguous(), horizontal.contiguous()


def linear(weight: Tensor, budget: Budget, *, covariance: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`weight` `[out, in]` -> down `[R, in]`, up `[out, R]`: the truncated SVD, the best of that rank.

    With the covariance of the inputs, the best of that rank for `E||(W - up @ down) x||^2`.

    Source: Eckart, Young, "The approximation of one matrix by another of lower rank", Psychometrika 1936.
    """
    white, inverse = whiten(weight, covariance)
    left, values, right = torch.linalg.svd(white, full_matrices=False)
    shape = tuple(weight.shape)
    rank = budget.one(
        values.numel(), lambda r: MultiplyAdds.linear(shape, r), MultiplyAdds.dense(shape), lambda: shares(values)
    )
    root = values[:rank].sqrt()
    return unwhiten(root[:, None] * right[:rank], inverse).contiguous(), (left[:, :rank] * root).contiguous()
