"""Random operands, their float32 references and the check that every timed kernel has to pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from deep_gemm.utils import per_block_cast_to_fp8, per_token_cast_to_fp8

Tensor = Any
Scaled = tuple[Tensor, Tensor]

# |out - reference| / |reference|: rounding to bf16 costs 0.0017, the tensor core's short accumulator less.
ERROR_LIMIT = {"fp8": 4e-3, "bf16": 2.5e-3}


def random_fp32(*shape: int, device: str = "cuda") -> Tensor:
    return torch.randn(*shape, dtype=torch.float32, device=device)


def scaled_tokens(*shape: int, device: str = "cuda") -> Scaled:
    """[..., m, k] with a scale for each row and 128 columns."""
    values, scales = per_token_cast_to_fp8(random_fp32(*shape, device=device).reshape(-1, shape[-1]))
    return values.reshape(shape), scales.reshape(*shape[:-1], -1)


def scaled_weights(*shape: int, device: str = "cuda") -> Scaled:
    """[..., n, k] with a scale for each 128 x 128; n must be a multiple of 128."""
    values, scales = per_block_cast_to_fp8(random_fp32(*shape, device=device).reshape(-1, shape[-1]))
    return values.reshape(shape), scales.reshape(*shape[:-2], shape[-2] // 128, -1)


def dequantised(pair: Scaled, rows_per_scale: int = 1) -> Tensor:
    values, scales = pair
    full = scales.repeat_interleave(rows_per_scale, -2).repeat_interleave(128, -1)
    return values.float() * full[..., : values.shape[-1]]


def product(a: Tensor, b: Tensor) -> Tensor:
    """a b^T in float32, without TF32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        return a @ b.transpose(-1, -2)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def num_bytes(*tensors: Tensor) -> int:
    return sum(int(t.numel()) * int(t.element_size()) for t in tensors)


def poison(d: Tensor) -> Tensor:
    return d.fill_(float("nan"))


def relative_error(out: Tensor, reference: Tensor) -> float:
    """|out - reference| / |reference|; NaN where an element was not written."""
    difference = torch.linalg.vector_norm(out.float() - reference, dtype=torch.float64)
    return float(difference / torch.linalg.vector_norm(reference, dtype=torch.float64))


def require_close(out: Tensor, reference: Tensor, limit: float, what: str) -> float:
    error = relative_error(out, reference)
    if not error <= limit:
        written = float(torch.isfinite(out).float().mean())
        raise AssertionError(
            f"{what}: wrong result: relative error {error:.2e}, limit {limit:.1e}, "
            f"{written:.2%} of the elements are finite"
        )
    return error


@dataclass
class Rotation:
    """Copies of one problem's operands, in different memory: launch i of a burst uses set i."""

    sets: list[tuple[Tensor, ...]] = field(default_factory=list)

    @staticmethod
    def of(tensors: tuple[Tensor, ...], num_sets: int) -> Rotation:
        return Rotation([tensors, *(tuple(t.clone() for t in tensors) for _ in range(num_sets - 1))])

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return self.sets[index]

    def __len__(self) -> int:
        return len(self.sets)
