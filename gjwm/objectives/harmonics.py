"""Sums of cos(k theta), sin(k theta) over samples, and trigonometric series, for k = 0..K-1 at the
price of one sine and cosine.

The Epps-Pulley statistic needs sum_n exp(i k theta_n) at evenly spaced knots k, and its gradient is
a trigonometric series in theta with coefficients per slice. Storing exp(i k theta) for all k costs
N * S * K numbers and as many sines. Two ways avoid it:

`Factored` writes k = a +- b with a few "giant" steps a and "baby" steps b, so that exp(i k theta) =
exp(i a theta) exp(+-i b theta). For 17 knots, a in {0, 5, 10, 15} and b in {0, 1, 2} suffice: 12
arrays instead of 34. All 35 sums of products come from one small matrix product per slice, and so
does the series. This is plain eager PyTorch.

`Compiled` lets Inductor fuse the three-term loop over k into one pass over theta: C++ on a CPU,
Triton on CUDA."""

from __future__ import annotations

import logging
import math
from functools import cache

import torch
from torch import Tensor

_log = logging.getLogger(__name__)


@cache
def _plan(knots: int) -> tuple[int, int]:
    """(m, g): baby steps 0..m and giant steps 0, 2m+1, .., g(2m+1) that reach k = 0..knots-1 with
    the fewest arrays.
    """
    last = knots - 1
    plans = ((m, max(0, math.ceil((last - m) / (2 * m + 1)))) for m in range(last + 1))
    return min(plans, key=lambda mg: (sum(mg), mg[0]))


@cache
def _expansion(knots: int, dtype: torch.dtype, device: torch.device) -> Pair:
    """cos(k theta) and sin(k theta) as bilinear forms of giants and babies: two (K, (2g+1)(2m+1))
    matrices.
    """
    m, g = _plan(knots)
    cos, sin = torch.zeros(2, knots, 2 * g + 1, 2 * m + 1, dtype=dtype, device=device)
    for k in range(knots):
        a = round(k / (2 * m + 1))
        b = k - a * (2 * m + 1)
        sign, b = (1 if b >= 0 else -1), abs(b)
        # Row 0 is the constant 1; rows 2a-1 and 2a are cosine and sine of step a.
        ca, sa, cb, sb = max(2 * a - 1, 0), 2 * a, max(2 * b - 1, 0), 2 * b
        cos[k, ca, cb] += 1
        if a:
            sin[k, sa, cb] += 1
        if b:
            sin[k, ca, sb] += sign
        if a and b:
            cos[k, sa, sb] -= sign
    return cos.flatten(1), sin.flatten(1)


Pair = tuple[Tensor, Tensor]  # a cosine and a sine


def _multiply(x: Pair, y: Pair, out: Pair) -> Pair:
    """(cos, sin) of the sum of two angles, into preallocated arrays."""
    torch.mul(x[0], y[0], out=out[0]).addcmul_(x[1], y[1], value=-1)
    torch.mul(x[1], y[0], out=out[1]).addcmul_(x[0], y[1])
    return out


class Factored:
    """Giant and baby steps of angles for K knots; buffers are reused from call to call."""

    def __init__(self, knots: int):
        self.knots = knots
        self.baby, self.giant = _plan(knots)
        self._buffers: dict[str, Tensor] = {}

    def _buffer(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[name] = torch.empty(size, dtype=like.dtype, device=like.device)
        return buffer[:size].view(shape)

    def _fill(self, theta: Tensor, giants: list[Tensor], babies: list[Tensor]) -> None:
        """Write 1, cos, sin, .. of all steps into views of the shape of theta."""
        giants[0].fill_(1)
        babies[0].fill_(1)
        if not self.baby:
            first = (torch.cos(theta, out=giants[1]), torch.sin(theta, out=giants[2]))
        else:
            one = power = (torch.cos(theta, out=babies[1]), torch.sin(theta, out=babies[2]))
            for b in range(2, self.baby + 1):
                power = _multiply(power, one, (babies[2 * b - 1], babies[2 * b]))
            if not self.giant:
                return
            # 2m + 1 = m + m + 1; the last giant's place is free until the end and holds the product
            # in between.
            spare = (giants[-2], giants[-1])
            if self.giant == 1:
                spare = (torch.empty_like(theta), torch.empty_like(theta))
            first = _multiply(_multiply(power, power, spare), one, (giants[1], giants[2]))
        power = first
        for a in range(2, self.giant + 1):
            power = _multiply(power, first, (giants[2 * a - 1], giants[2 * a]))

    def columns(self, theta: Tensor) -> Pair:
        """Sums over the last axis of theta (S, N): cosines and sines (K, S)."""
        slices, n = theta.shape
        rows, cols = 2 * self.giant + 1, 2 * self.baby + 1
        self._u = self._buffer("u", (slices, rows, n), theta)
        self._v = self._buffer("v", (slices, cols, n), theta)
        self._fill(theta, list(self._u.unbind(1)), list(self._v.unbind(1)))
        products = torch.bmm(self._u, self._v.transpose(1, 2)).view(slices, rows * cols)
        cos, sin = _expansion(self.knots, theta.dtype, theta.device)
        return cos @ products.T, sin @ products.T

    def columns_series(self, a: Tensor, b: Tensor) -> Tensor:
        """sum_k a_k cos(k theta) + b_k sin(k theta) at the angles of `columns`: coefficients (K, S)
        -> (S, N).
        """
        slices, rows, _ = self._u.shape
        cols = self._v.shape[1]
        cos, sin = _expansion(self.knots, a.dtype, a.device)
        weight = (a.T @ cos).addmm_(b.T, sin).view(slices, rows, cols)
        mixed = torch.bmm(weight.transpose(1, 2), self._u, out=self._buffer("r", self._v.shape, a))
        return mixed.mul_(self._v).sum(1)

    def rows(self, theta: Tensor, mask: Tensor | None = None) -> Pair:
        """Sums over the first axis of theta (L, M), counting only where mask (L, M) is not 0: (K,
        M) each.
        """
        length, width = theta.shape
        rows, cols = 2 * self.giant + 1, 2 * self.baby + 1
        self._u = self._buffer("u", (rows, length, width), theta)
        self._v = self._buffer("v", (cols, length, width), theta)
        self._fill(theta, list(self._u.unbind(0)), list(self._v.unbind(0)))
        if mask is not None:
            self._u.mul_(mask)
        products = self._buffer("p", (rows, cols, width), theta)
        scratch = self._buffer("r", (length, width), theta)
        for i in range(rows):
            for j in range(cols):
                if j == 0:
                    torch.sum(self._u[i], 0, out=products[i, j])
                elif i == 0 and mask is None:
                    torch.sum(self._v[j], 0, out=products[i, j])
                else:
                    torch.sum(torch.mul(self._u[i], self._v[j], out=scratch), 0, out=products[i, j])
        cos, sin = _expansion(self.knots, theta.dtype, theta.device)
        products = products.view(rows * cols, width)
        return cos @ products, sin @ products

    def rows_series(self, a: Tensor, b: Tensor) -> Tensor:
        """The series at the angles of `rows`: coefficients (K, M) -> (L, M), 0 where masked."""
        rows, length, width = self._u.shape
        cols = self._v.shape[0]
        cos, sin = _expansion(self.knots, a.dtype, a.device)
        weight = (cos.T @ a).addmm_(sin.T, b).view(rows, cols, width)
        total = torch.empty(length, width, dtype=a.dtype, device=a.device)
        scratch = self._buffer("r", (length, width), a)
        for j in range(cols):
            out = total if j == 0 else scratch
            torch.mul(self._u[0], weight[0, j], out=out)
            for i in range(1, rows):
                out.addcmul_(self._u[i], weight[i, j])
            if j:
                total.addcmul_(self._v[j], scratch)
        return total


def _block(length: int) -> int:
    """How many samples to add up at a time: a divisor of `length`, because one long sum in single
    precision loses digits.
    """
    return (
        next((p for p in range(512, 63, -1) if length % p == 0), length) if length > 512 else length
    )


def _sums(theta: Tensor, mask: Tensor | None, knots: int, block: int) -> Pair:
    def total(x: Tensor) -> Tensor:
        return x.sum(0) if block == len(x) else x.unflatten(0, (-1, block)).sum(1).sum(0)

    c, s = theta.cos(), theta.sin()
    first = torch.ones_like(theta) if mask is None else mask.to(theta.dtype).expand_as(theta)
    cos, sin = [total(first)], [torch.zeros_like(theta[0])]
    ck, sk = first * c, first * s
    for k in range(1, knots):
        cos.append(total(ck))
        sin.append(total(sk))
        if k < knots - 1:
            ck, sk = ck * c - sk * s, sk * c + ck * s
    return torch.stack(cos), torch.stack(sin)


def _series(theta: Tensor, mask: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    # Horner's scheme for the real part of sum_k (a_k - i b_k) exp(i theta)^k.
    c, s = theta.cos(), theta.sin()
    re, im = a[-1].expand_as(theta), -b[-1].expand_as(theta)
    for k in range(len(a) - 2, -1, -1):
        re, im = re * c - im * s + a[k], re * s + im * c - b[k]
    return re if mask is None else re * mask


@cache
def _compiled(device: str):
    _log.warning(
        "SIGReg(compile=True): compiling for %s, tens of seconds once per process and kind of "
        "shape; the code is cached on disk (TORCHINDUCTOR_CACHE_DIR), so later runs start faster.",
        device,
    )
    return torch.compile(_sums, dynamic=True), torch.compile(_series, dynamic=True)


class Compiled:
    """The same sums and series as `Factored`, from two compiled kernels, with angles (L, M) for
    both uses: summed over the first axis.
    """

    def __init__(self, knots: int):
        self.knots = knots

    def rows(self, theta: Tensor, mask: Tensor | None = None) -> Pair:
        """See `Factored.rows`."""
        self._theta, self._mask = theta, mask
        return _compiled(theta.device.type)[0](theta, mask, self.knots, _block(len(theta)))

    def rows_series(self, a: Tensor, b: Tensor) -> Tensor:
        """See `Factored.rows_series`."""
        return _compiled(a.device.type)[1](self._theta, self._mask, a, b)

    columns, columns_series = rows, rows_series
