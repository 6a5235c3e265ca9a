"""FP4 operations with PyTorch tensors: on the host for the emulator; captured in CUDA graphs on the GPU.

A graph is replayed with other tokens and another routing in the same memory: it must give the bits of the eager call,
so nothing of the first ones may have been decided on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import deep_gemm
from deep_gemm import utils

torch: Any = pytest.importorskip("torch")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")

EXPERTS, TOP_K, N, K, M = 8, 2, 256, 512, 40
FORMS = ["mx_e4m3", "nv_single", "nv_exact"]


def weights(form: str, experts: int, n: int, k: int, where: str) -> deep_gemm.Fp4Weights:
    generator = torch.Generator().manual_seed(n)
    codes = torch.randint(0, 256, (experts, n, k // 2), generator=generator, dtype=torch.uint8).to(where)
    if form.startswith("mx"):
        scales = torch.randint(118, 124, (experts, n, k // 32), generator=generator, dtype=torch.uint8).to(
            where
        )
        return deep_gemm.pack_fp4_weights(codes, scales, form=form)
    scales = torch.randint(0x20, 0x38, (experts, n, k // 16), generator=generator, dtype=torch.uint8).to(
        where
    )
    shared = torch.full((experts,), 0.25, device=where)
    return deep_gemm.pack_fp4_weights(codes, scales, shared, form=form)


def tokens(*shape: int, seed: int, where: str) -> tuple[Any, Any]:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(where)
    values, scales = utils.per_token_cast_to_fp8(x.reshape(-1, shape[-1]))
    return values.reshape(shape), scales.reshape(*shape[:-1], -1)


def integers(values: Any, where: str) -> Any:
    return torch.tensor(values, dtype=torch.int32, device=where)


class Call:
    """One operation on tensors that stay where they are; inputs(seed) fills them."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.a = tokens(M, K, seed=0, where=where)

    def inputs(self, seed: int) -> None:
        for mine, new in zip(self.a, tokens(*self.a[0].shape, seed=seed, where=self.where), strict=True):
            mine.copy_(new)


class Dense(Call):
    def __init__(self, form: str, where: str) -> None:
        super().__init__(where)
        self.b = weights(form, 1, N, K, where)
        self.d = torch.empty(M, N, dtype=torch.bfloat16, device=where)

    def run(self, **options: Any) -> None:
        deep_gemm.fp8_fp4_gemm_nt(self.a, self.b, self.d, **options)


class Masked(Call):
    def __init__(self, form: str, where: str) -> None:
        super().__init__(where)
        self.a = tokens(EXPERTS, M, K, seed=0, where=where)
        self.b = weights(form, EXPERTS, N, K, where)
        self.d = torch.empty(EXPERTS, M, N, dtype=torch.bfloat16, device=where)
        self.counts = integers([M] * EXPERTS, where)

    def inputs(self, seed: int) -> None:
        super().inputs(seed)
        self.d.zero_()
        self.counts.copy_(integers([(seed * 7 + 11 * e) % (M + 1) for e in range(EXPERTS)], self.where))

    def run(self, **options: Any) -> None:
        deep_gemm.m_grouped_fp8_fp4_gemm_nt_masked(self.a, self.b, self.d, self.counts, 8, **options)


class Contiguous(Call):
    def __init__(self, form: str, where: str) -> None:
        super().__init__(where)
        self.a = tokens(384, K, seed=0, where=where)
        self.b = weights(form, EXPERTS, N, K, where)
        self.d = torch.empty(384, N, dtype=torch.bfloat16, device=where)
        self.layout = integers([0] * 384, where)

    def inputs(self, seed: int) -> None:
        super().inputs(seed)
        groups = [
            (seed + 3 * block) % EXPERTS if row < 100 else -1 for block in range(3) for row in range(128)
        ]
        self.layout.copy_(integers(groups, self.where))

    def run(self, **options: Any) -> None:
        deep_gemm.m_grouped_fp8_fp4_gemm_nt_contiguous(self.a, self.b, self.d, self.layout, **options)


class Gathered(Call):
    def __init__(self, form: str, where: str) -> None:
        super().__init__(where)
        self.b = weights(form, EXPERTS, N, K, where)
        self.d = torch.empty(M * TOP_K, N, dtype=torch.bfloat16, device=where)
        self.entries, self.head = integers([[0, 0, 0, 0]] * EXPERTS, where), integers([0, 0, 0, 0], where)
        self.rows = integers([i // TOP_K for i in range(M * TOP_K)], where)

    def inputs(self, seed: int) -> None:
        super().inputs(seed)
        self.d.zero_()
        split = 13 + seed * 5  # two experts share the slots
        entries = [[seed % EXPERTS, 0, split, 0], [(seed + 3) % EXPERTS, split, M * TOP_K - split, 0]]
        self.entries[:2].copy_(integers(entries, self.where))
        self.head.copy_(integers([2, 0, 0, 0], self.where))

    def run(self, **options: Any) -> None:
        deep_gemm.m_grouped_fp8_fp4_gemm_nt_gathered(
            self.a, self.b, self.d, self.entries, self.head, self.rows, **options
        )


class FusedMoe(Call):
    def __init__(self, form: str, where: str) -> None:
        super().__init__(where)
        self.x = torch.empty(M, K, dtype=torch.bfloat16, device=where)
        self.ids = integers([[0] * TOP_K] * M, where)
        self.routing = torch.empty(M, TOP_K, device=where)
        self.w13, self.w2 = weights(form, EXPERTS, 2 * N, K, where), weights(form, EXPERTS, K, N, where)
        self.d = torch.empty(M, K, dtype=torch.bfloat16, device=where)
        self.workspace = deep_gemm.moe_workspace(self.x, M, TOP_K, EXPERTS, K, N, fp4=True)

    def inputs(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x.copy_(torch.randn(M, K, generator=generator))
        self.ids.copy_(torch.rand(M, EXPERTS, generator=generator).topk(TOP_K, 1).indices.int())
        self.routing.copy_(torch.rand(M, TOP_K, generator=generator))

    def run(self, **options: Any) -> None:
        deep_gemm.fused_moe(
            self.x, self.ids, self.routing, self.w13, self.w2, self.d, workspace=self.workspace, **options
        )


CALLS: list[Callable[[str, str], Any]] = [Dense, Masked, Contiguous, Gathered, FusedMoe]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("make", CALLS, ids=lambda make: make.__name__)
def test_host_tensors_on_the_emulator(make: Callable[[str, str], Any], form: str) -> None:
    """Two inputs give two results, both finite and both again the same."""
    call = make(form, "cpu")
    results = []
    for seed in (1, 2, 1):
        call.inputs(seed)
        call.run(device="emulator:sm_90a")
        results.append(call.d.clone())
    assert torch.isfinite(results[0].float()).all() and not torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@gpu
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("make", CALLS, ids=lambda make: make.__name__)
def test_graph_capture(make: Callable[[str, str], Any], form: str) -> None:
    call = make(form, "cuda")
    expected = {}
    for seed in (1, 2, 3):
        call.inputs(seed)
        call.run()
        expected[seed] = call.d.clone()
    assert not torch.equal(expected[1], expected[2])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call.run()
        call.run()
    for seed in (2, 3, 1, 1):
        call.d.fill_(float("nan"))
        call.inputs(seed)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(call.d, expected[seed]), seed
