"""Weights as they will be stored: MXFP4 for experts, FP8 in blocks of 128 x 128. Training sees the rounded values and
passes gradients through as if nothing had happened; export writes the same codes."""

from __future__ import annotations

from typing import Any

import torch

E4M3_MAX, E2M1_MAX = 448.0, 6.0
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
_HALVES = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
# A value half way goes to the even code: down at the first, third, .. limit, up at the others.
LIMITS = torch.where(torch.arange(7) % 2 == 1, torch.nextafter(_HALVES, torch.zeros(7)), _HALVES)


def exponent_up(x: torch.Tensor) -> torch.Tensor:
    """The smallest e with x <= 2^e, of positive x."""
    mantissa, exponent = torch.frexp(x)
    return exponent - (mantissa == 0.5).int()


def power(e: torch.Tensor) -> torch.Tensor:
    return torch.ldexp(torch.ones_like(e, dtype=torch.float32), e)


def to_mxfp4(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes uint8 [.., k], exponents int32 [.., k / 32]): sign in bit 3."""
    groups = w.float().unflatten(-1, (-1, 32))
    e = exponent_up(groups.abs().amax(-1).clamp(min=2.0**-120) / E2M1_MAX)
    scaled = groups / power(e).unsqueeze(-1)
    codes = torch.bucketize(scaled.abs().contiguous(), LIMITS.to(w.device)) + 8 * (scaled < 0)
    return codes.to(torch.uint8).flatten(-2), e


def from_mxfp4(codes: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
    values = E2M1.to(codes.device)[(codes & 7).long()] * (1 - 2 * (codes >> 3).float())
    return (values.unflatten(-1, (-1, 32)) * power(e).unsqueeze(-1)).flatten(-2)


def _blocks(w: torch.Tensor) -> torch.Tensor:
    n, k = w.shape
    return w.reshape(n // 128, 128, k // 128, 128)


def to_fp8(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes float8_e4m3fn [n, k], exponents int32 [n / 128, k / 128])."""
    blocks = _blocks(w.float())
    e = exponent_up(blocks.abs().amax((1, 3)).clamp(min=1e-4) / E4M3_MAX)
    scaled = (blocks / power(e)[:, None, :, None]).clamp(-E4M3_MAX, E4M3_MAX)
    return scaled.reshape(w.shape).to(torch.float8_e4m3fn), e


def from_fp8(codes: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
    return (_blocks(codes.float()) * power(e)[:, None, :, None]).reshape(codes.shape)


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: torch.Tensor, stored: str) -> torch.Tensor:
        return from_mxfp4(*to_mxfp4(w)) if stored == "fp4" else from_fp8(*to_fp8(w))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


def rounded(w: torch.Tensor, stored: str) -> torch.Tensor:
    return Rounded.apply(w, stored) if stored in ("fp4", "fp8") else w
