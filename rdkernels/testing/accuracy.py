"""The accuracy rule: per element, at most twice the error of plain torch in the same dtype, against float64."""

from __future__ import annotations

import torch
from torch import Tensor


def assert_accurate(got: Tensor, exact: Tensor, peer: Tensor, what: str = "result") -> None:
    """Raise AssertionError unless every element of `got` is as close to the truth as the rule asks::

        |got - exact| <= 2 * max|peer - exact| + 4 * eps * max|exact|    eps of got's dtype, maxima over all elements

    A norm over the whole tensor would be blind: 300 zeroed outputs of 4096 x 4096 pass one.

    Args:
        got: what the backend under test computed.
        exact: the same in float64.
        peer: the same in plain torch in got's dtype.
        what: how the message names the tensor.

    NaN and infinities must stand where `peer` has them, infinities with its sign; they are left out of the maxima.
    Source of the rule: FlashAttention's tests, with float64 in the place of float32 as the truth.
    """
    for name, t in (("exact", exact), ("peer", peer)):
        if t.shape != got.shape:
            raise AssertionError(f"{what}: shape {list(got.shape)}, {name} has {list(t.shape)}")
    if exact.dtype != torch.float64 or peer.dtype != got.dtype:
        raise AssertionError(f"{what}: got {got.dtype}, peer {peer.dtype}, exact {exact.dtype} (must be float64)")
    if got.numel() == 0:
        return
    g, p = got.detach().double().cpu(), peer.detach().double().cpu()
    e = exact.detach().cpu()
    finite = torch.isfinite(p)
    same = torch.where(torch.isnan(p), torch.isnan(g), g == p)
    if not bool(torch.where(finite, torch.isfinite(g), same).all()):
        where = _first(torch.where(finite, ~torch.isfinite(g), ~same))
        raise AssertionError(f"{what}: at {where} got {g[where].item()}, torch has {p[where].item()}")
    if not bool(finite.any()):
        return
    error = torch.where(finite, (g - e).abs(), torch.zeros_like(e))
    peer_error = (p - e)[finite].abs().max()
    bound = 2 * peer_error + 4 * torch.finfo(got.dtype).eps * e[finite].abs().max()
    if bool((error > bound).any()):
        where = tuple(int(v) for v in torch.unravel_index(error.argmax(), error.shape))
        value, true, off = g[where].item(), e[where].item(), error[where].item()
        raise AssertionError(
            f"{what}: {int((error > bound).sum())} of {error.numel()} elements off, worst at {where}: "
            f"got {value:.9g}, exact {true:.9g}, error {off:.3g} > {bound.item():.3g} "
            f"(torch's own largest error {peer_error.item():.3g})"
        )


def _first(mask: Tensor) -> tuple[int, ...]:
    return tuple(int(v) for v in mask.nonzero()[0])
