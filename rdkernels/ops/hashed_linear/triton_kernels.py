"""Triton kernels of the three passes. Seed, slots and scale are run-time arguments: no layer compiles its own kernel.

`V` is never read: `decode` computes where each value of a block stands in the bank, loads it in whole 16-lane vectors
and flips its sign bit. Blocks are free of the granule: a block may hold many granules or a part of one.
"""

from __future__ import annotations

import triton
import triton.language as tl

P2 = tl.constexpr(2246822519)
P3 = tl.constexpr(3266489917)
P4 = tl.constexpr(668265263)
P5_PLUS_8 = tl.constexpr(374761393 + 8)
SIGN = tl.constexpr(0x80000000)

RUNTIME = ["M", "slots", "seed", "scale"]


@triton.jit
def _rotate(h):
    return (h << 17) | (h >> 15)


@triton.jit
def hash_row(p, seed):
    """The half of XXH32 that depends on the granule row only."""
    return _rotate(seed.to(tl.uint32) + P5_PLUS_8 + p.to(tl.uint32) * P3) * P4


@triton.jit
def hash_pair(row, q):
    h = _rotate(row + q.to(tl.uint32) * P3) * P4
    h = (h ^ (h >> 15)) * P2
    h = (h ^ (h >> 13)) * P3
    return h ^ (h >> 16)


@triton.jit
def flip(v, bits):
    """`v` with its sign bit XOR-ed by the top bit of `bits` (uint32)."""
    if v.dtype == tl.float32:
        return (v.to(tl.uint32, bitcast=True) ^ (bits & SIGN)).to(tl.float32, bitcast=True)
    else:
        return (v.to(tl.uint16, bitcast=True) ^ ((bits & SIGN) >> 16).to(tl.uint16)).to(v.dtype, bitcast=True)


@triton.jit
def lane_shift(lane):
    """How far `aux` moves left so that the lane's sign bit is on top."""
    return (31 - lane // 2 - 16 * (lane % 2)).to(tl.uint32)


@triton.jit
def place(h, o, vector, slots, GO: tl.constexpr, GI: tl.constexpr):
    """Bank offset of the 16-lane vector `vector` of row `o` in a granule with hash `h`, and the granule's sign bits."""
    aux = (h ^ (h >> 15)) * P2
    r = o.to(tl.uint32) & (GO - 1)
    c = vector.to(tl.uint32) & (GI // 16 - 1)
    r ^= (aux >> 24) & (GO - 1)
    c ^= (aux >> 8) & (GI // 16 - 1)
    return tl.umulhi(h, slots.to(tl.uint32)).to(tl.int64) * (GO * GI) + (r * GI + c * 16).to(tl.int64), aux


@triton.jit
def decode(bank, o, i0, slots, seed, GO: tl.constexpr, GI: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """V[o, i0 : i0 + BK] for rows `o` [BN]; entries past the edges of V are some value of the bank."""
    # unsigned, so that a division is a shift
    row = hash_row(o.to(tl.uint32) // GO, seed)[:, None]  # [BN, 1]
    if GI == 1:
        h = hash_pair(row, i0 + tl.arange(0, BK)[None, :])  # [BN, BK]
        v = flip(tl.load(bank + tl.umulhi(h, slots.to(tl.uint32)).to(tl.int64)), h << 31)  # [BN, BK]
    else:
        # one hash per 16 lanes; the lanes are a third axis, so that a thread loads them as whole vectors
        vector = (i0 // 16 + tl.arange(0, BK // 16))[None, :].to(tl.uint32)  # [1, BK/16]
        at, aux = place(hash_pair(row, vector // (GI // 16)), o[:, None], vector, slots, GO, GI)  # [BN, BK/16]
        if bank.dtype.element_ty == tl.float32:
            lane = tl.arange(0, 16)[None, None, :]  # [1, 1, 16]
            v = flip(tl.load(bank + at[:, :, None] + lane), aux[:, :, None] << lane_shift(lane))  # [BN, BK/16, 16]
        else:
            # two 16-bit lanes to a word: their signs stand 16 bits apart in aux
            pair = tl.arange(0, 8)[None, None, :]  # [1, 1, 8]
            words = bank.to(tl.pointer_type(tl.uint32), bitcast=True) + (at >> 1)[:, :, None] + pair
            w = tl.load(words) ^ ((aux[:, :, None] << (15 - pair).to(tl.uint32)) & 0x80008000)  # [BN, BK/16, 8]
            low = w.to(tl.uint16).to(bank.dtype.element_ty, bitcast=True)
            high = (w >> 16).to(tl.uint16).to(bank.dtype.element_ty, bitcast=True)
            v = tl.join(low, high)  # [BN, BK/16, 8, 2]
        v = tl.reshape(v, (BN, BK))  # [BN, BK]
    return v


@triton.jit
def _dot(a, b, acc, WIDEN: tl.constexpr):
    # the interpreter multiplies the raw bits of bfloat16
    if WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def _fwd_step(
    acc, x, bank, o, m, i0, M, K, stride, slots, seed,
    GO: tl.constexpr, GI: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    RAGGED: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    i = i0 + tl.arange(0, BK)  # [BK]
    v = decode(bank, o, i0, slots, seed, GO, GI, BN, BK)  # [BN, BK]
    # zeros on both sides: a value past the edge may be inf or NaN
    if RAGGED:
        v = tl.where((i < K)[None, :], v, 0.0)
    if BM == 1:
        xm = tl.load(x + m * stride + i, mask=i < K, other=0.0) if RAGGED else tl.load(x + m * stride + i)  # [BK]
        acc += v.to(tl.float32) * xm.to(tl.float32)[None, :]  # [BN, BK]
    else:
        mask = (m < M)[None, :]
        if RAGGED:
            mask = mask & (i < K)[:, None]
        xt = tl.load(x + m[None, :] * stride + i[:, None], mask=mask, other=0.0)  # [BK, BM]
        acc = _dot(v, xt, acc, WIDEN)  # [BN, BM]
    return acc


@triton.jit(do_not_specialize=RUNTIME)
def fwd(
    x, bank, bias, y, M, N, K, span, stride, slots, seed, scale,
    GO: tl.constexpr, GI: tl.constexpr, BIAS: tl.constexpr, HASHED_BIAS: tl.constexpr, PARTIAL: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """y[m, o] = scale * sum_i V[o, i] x[m, i] + bias[o]; with PARTIAL, one unscaled float32 sum per span of i."""
    blocks = tl.cdiv(N, BN)
    o = tl.program_id(0) % blocks * BN + tl.arange(0, BN)  # [BN]
    m = tl.program_id(0).to(tl.int64) // blocks * BM
    if BM > 1:
        m += tl.arange(0, BM)  # [BM]
    start = tl.program_id(1) * span
    end = tl.minimum(start + span, K)
    even = start + (end - start) // BK * BK
    # V is the left factor: 16 rows of x are enough to fill a tensor-core instruction
    acc = tl.zeros((BN, BK if BM == 1 else BM), tl.float32)
    for i0 in range(start, even, BK):
        acc = _fwd_step(acc, x, bank, o, m, i0, M, K, stride, slots, seed, GO, GI, BM, BN, BK, False, WIDEN)
    if even < end:
        acc = _fwd_step(acc, x, bank, o, m, even, M, K, stride, slots, seed, GO, GI, BM, BN, BK, True, WIDEN)
    if BM == 1:
        acc = tl.sum(acc, 1, keep_dims=True)  # [BN, 1]
        at, mask = m * N + o[:, None], (o < N)[:, None]
    else:
        at, mask = m[None, :] * N + o[:, None], (m < M)[None, :] & (o < N)[:, None]  # [BN, BM]
    if HASHED_BIAS and start == 0:
        h = hash_pair(hash_row(o, seed), tl.full((BN,), K, tl.int32))  # [BN]
        acc += flip(tl.load(bank + tl.umulhi(h, slots.to(tl.uint32)).to(tl.int64)), h << 31).to(tl.float32)[:, None]
    if PARTIAL:
        tl.store(y + tl.program_id(1).to(tl.int64) * M * N + at, acc, mask=mask)
    else:
        acc *= scale
        if BIAS:
            acc += tl.load(bias + o, mask=o < N, other=0.0).to(tl.float32)[:, None]
        tl.store(y + at, acc.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _bwd_x_step(
    acc, dy, bank, m, n0, i0, M, N, stride, slots, seed,
    GO: tl.constexpr, GI: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    RAGGED: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    o = n0 + tl.arange(0, BN)  # [BN]
    v = decode(bank, o, i0, slots, seed, GO, GI, BN, BK)  # [BN, BK]
    if RAGGED:
        v = tl.where((o < N)[:, None], v, 0.0)
    if BM == 1:
        g = tl.load(dy + m * stride + o, mask=o < N, other=0.0) if RAGGED else tl.load(dy + m * stride + o)  # [BN]
        acc += v.to(tl.float32) * g.to(tl.float32)[:, None]  # [BN, BK]
    else:
        mask = (m < M)[:, None]
        if RAGGED:
            mask = mask & (o < N)[None, :]
        g = tl.load(dy + m[:, None] * stride + o[None, :], mask=mask, other=0.0)  # [BM, BN]
        acc = _dot(g, v, acc, WIDEN)  # [BM, BK]
    return acc


@triton.jit(do_not_specialize=RUNTIME)
def bwd_x(
    dy, bank, dx, M, N, K, span, stride, slots, seed, scale,
    GO: tl.constexpr, GI: tl.constexpr, PARTIAL: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """dx[m, i] = scale * sum_o dy[m, o] V[o, i]; with PARTIAL, one unscaled float32 sum per span of o."""
    blocks = tl.cdiv(K, BK)
    i0 = tl.program_id(0) % blocks * BK
    m = tl.program_id(0).to(tl.int64) // blocks * BM
    if BM > 1:
        m += tl.arange(0, BM)  # [BM]
    start = tl.program_id(1) * span
    end = tl.minimum(start + span, N)
    even = start + (end - start) // BN * BN
    acc = tl.zeros((BN if BM == 1 else BM, BK), tl.float32)
    for n0 in range(start, even, BN):
        acc = _bwd_x_step(acc, dy, bank, m, n0, i0, M, N, stride, slots, seed, GO, GI, BM, BN, BK, False, WIDEN)
    if even < end:
        acc = _bwd_x_step(acc, dy, bank, m, even, i0, M, N, stride, slots, seed, GO, GI, BM, BN, BK, True, WIDEN)
    i = i0 + tl.arange(0, BK)[None, :]  # [1, BK]
    if BM == 1:
        acc = tl.sum(acc, 0, keep_dims=True)  # [1, BK]
        at, mask = m * K + i, i < K
    else:
        at, mask = m[:, None] * K + i, (m < M)[:, None] & (i < K)  # [BM, BK]
    if PARTIAL:
        tl.store(dx + tl.program_id(1).to(tl.int64) * M * K + at, acc, mask=mask)
    else:
        tl.store(dx + at, (acc * scale).to(dx.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["total", "parts", "scale"])
def combine(part, bias, out, total, N, parts, scale, BIAS: tl.constexpr, BLOCK: tl.constexpr):
    """out = scale * (part[0] + part[1] + ...) + bias, in that order; `total` values in rows of N."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    mask = at < total
    acc = tl.zeros((BLOCK,), tl.float32)
    for _ in range(parts):
        acc += tl.load(part + at, mask=mask, other=0.0)
        part += total
    acc *= scale
    if BIAS:
        acc += tl.load(bias + at % N, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + at, acc.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["slots", "seed", "granules"])
def bank_keys(keys, granules, across, slots, seed, BLOCK: tl.constexpr):
    """keys[g] = slot of granule g, counted along the rows of `across` granules."""
    g = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    h = hash_pair(hash_row(g // across, seed), g % across)
    tl.store(keys + g, tl.umulhi(h, slots.to(tl.uint32)).to(tl.int32), mask=g < granules)


@triton.jit(do_not_specialize=RUNTIME)
def bank_owner(
    dyt, x, order, first, part, M, N, K, across, stride_dy, stride, slots, seed, pieces,
    GO: tl.constexpr, GI: tl.constexpr, BM: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Tiles: a program owns [BR, BC] of one slot and walks through a fixed piece of the slot's members.

    dyt [N, M] in rows of stride_dy, zero past M; order: granules sorted by slot; first [slots + 1];
    part [pieces, slots * GO * GI].
    """
    pid = tl.program_id(0)
    blocks: tl.constexpr = (GO // BR) * (GI // BC)
    slot = pid // blocks
    r = pid % blocks // (GI // BC) * BR + tl.arange(0, BR)  # [BR]
    c = pid % (GI // BC) * BC + tl.arange(0, BC)  # [BC]
    piece = tl.program_id(1)
    begin = tl.load(first + slot)
    count = tl.load(first + slot + 1) - begin
    low = begin + (count.to(tl.int64) * piece // pieces).to(tl.int32)
    high = begin + (count.to(tl.int64) * (piece + 1) // pieces).to(tl.int32)
    acc = tl.zeros((BR, BC), tl.float32)
    for j in range(low, high):
        g = tl.load(order + j).to(tl.int32)
        p, q = g // across, g % across
        h = hash_pair(hash_row(p, seed), q)
        aux = (h ^ (h >> 15)) * P2
        # the two xors are their own inverse: walk through the member in the bank's order
        o = p.to(tl.int64) * GO + (r ^ ((aux >> 24) & (GO - 1)).to(tl.int32))  # [BR]
        i = q * GI + (c ^ (((aux >> 8) & (GI // 16 - 1)) * 16).to(tl.int32))  # [BC]
        i = tl.max_contiguous(tl.multiple_of(i, 16), 16)
        dw = tl.zeros((BR, BC), tl.float32)
        for m0 in range(0, M, BM):
            m = m0 + tl.arange(0, BM)  # [BM]
            near = (o < N)[:, None] & (m < stride_dy)[None, :]
            d = tl.load(dyt + o[:, None] * stride_dy + m[None, :], mask=near, other=0.0)  # [BR, BM]
            at = m.to(tl.int64)[:, None] * stride + i[None, :]  # [BM, BC]
            dw = _dot(d, tl.load(x + at, mask=(m < M)[:, None] & (i < K)[None, :], other=0.0), dw, WIDEN)
        # NaN or inf of x or dy must not reach the entries of the slot that this member does not use
        dw = tl.where((o < N)[:, None] & (i < K)[None, :], dw, 0.0)  # [BR, BC]
        # the signs belong to the lanes: one flip a member instead of one per row of x
        acc += flip(dw, (aux << lane_shift(c % 16))[None, :])  # [BR, BC]
    at = slot.to(tl.int64) * (GO * GI) + r[:, None] * GI + c[None, :]  # [BR, BC]
    tl.store(part + piece.to(tl.int64) * slots * (GO * GI) + at, acc)


@triton.jit(do_not_specialize=RUNTIME)
def bank_panel(
    dy, x, dw, keys, o0, i0, rows, across, wide, M, N, K, stride_dy, stride_x, slots, seed,
    GO: tl.constexpr, GI: tl.constexpr, HASHED_BIAS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """A panel of dV: signed granules in the bank's order, one after another, and the slot of each.

    The panel starts at (o0, i0), `rows` rows high and `across` granules wide; dw [granules, GO * GI] float32, zero
    past the edges; keys [granules] int32.
    """
    n = tl.program_id(0) // wide * BN + tl.arange(0, BN)  # [BN]
    k0 = tl.program_id(0) % wide * BK
    o = o0 + n
    i = i0 + k0 + tl.arange(0, BK)  # [BK]
    acc = tl.zeros((BN, BK), tl.float32)
    for m0 in range(0, M, BM):
        m = (m0 + tl.arange(0, BM)).to(tl.int64)  # [BM]
        d = tl.load(dy + m[None, :] * stride_dy + o[:, None], mask=(m < M)[None, :] & (o < N)[:, None], other=0.0)
        v = tl.load(x + m[:, None] * stride_x + i[None, :], mask=(m < M)[:, None] & (i < K)[None, :], other=0.0)
        if HASHED_BIAS:
            v = tl.where((i == K)[None, :], 1.0, v).to(d.dtype)  # [BM, BK]
        acc = _dot(d, v, acc, WIDEN)  # [BN, BK]
    acc = tl.where((o < N)[:, None] & (i < K + HASHED_BIAS)[None, :], acc, 0.0)
    row = hash_row(o // GO, seed)[:, None]  # [BN, 1]
    if GI == 1:
        h = hash_pair(row, i[None, :])  # [BN, BK]
        at = n.to(tl.int64)[:, None] * across + (k0 + tl.arange(0, BK))[None, :]
        inside = (k0 + tl.arange(0, BK) < across)[None, :] & (n < rows)[:, None]
        tl.store(dw + at, flip(acc, h << 31), mask=inside)
        tl.store(keys + at, tl.umulhi(h, slots.to(tl.uint32)).to(tl.int32), mask=inside)
    else:
        local = (k0 // 16 + tl.arange(0, BK // 16))[None, :]  # [1, BK/16]
        vector = i0 // 16 + local
        h = hash_pair(row, vector // (GI // 16))  # [BN, BK/16]
        at, aux = place(h, o[:, None], vector, slots, GO, GI)  # [BN, BK/16]
        g = (n // GO).to(tl.int64)[:, None] * across + local // (GI // 16)  # [BN, BK/16]
        inside = (n < rows)[:, None] & (local // (GI // 16) < across)  # [BN, BK/16]
        key = tl.umulhi(h, slots.to(tl.uint32))
        first = inside & (n % GO == 0)[:, None] & (local % (GI // 16) == 0)
        tl.store(keys + g, key.to(tl.int32), mask=first)
        at += (g - key.to(tl.int64)) * (GO * GI)
        lane = tl.arange(0, 16)[None, None, :]  # [1, 1, 16]
        signed = flip(tl.reshape(acc, (BN, BK // 16, 16)), aux[:, :, None] << lane_shift(lane))
        tl.store(dw + at[:, :, None] + lane, signed, mask=inside[:, :, None])


@triton.jit(do_not_specialize=["slots"])
def bank_gather(
    dw, order, first, total, slots,
    SIZE: tl.constexpr, BS: tl.constexpr, BJ: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """total[slot] += its members in the panel: a program owns BS slots and BE of the SIZE values of each.

    dw [granules, SIZE]; order: granules sorted by slot; first [slots + 1]; total [slots, SIZE].
    """
    slot = tl.program_id(0) * BS + tl.arange(0, BS)  # [BS]
    e = tl.program_id(1) * BE + tl.arange(0, BE)[None, None, :]  # [1, 1, BE]
    low = tl.load(first + slot, mask=slot < slots, other=0)
    count = tl.load(first + slot + 1, mask=slot < slots, other=0) - low
    acc = tl.zeros((BS, BJ, BE), tl.float32)
    for j0 in range(0, tl.max(count), BJ):
        j = j0 + tl.arange(0, BJ)[None, :]  # [1, BJ]
        there = j < count[:, None]  # [BS, BJ]
        g = tl.load(order + low[:, None] + j, mask=there, other=0)
        acc += tl.load(dw + g[:, :, None].to(tl.int64) * SIZE + e, mask=there[:, :, None], other=0.0)
    at = slot.to(tl.int64)[:, None, None] * SIZE + e  # [BS, 1, BE]
    mask = (slot < slots)[:, None, None] & (e < SIZE)
    before = tl.load(total + at, mask=mask, other=0.0)
    tl.store(total + at, before + tl.sum(acc, 1, keep_dims=True), mask=mask)
