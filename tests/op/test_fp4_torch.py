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
        self.fill(seed)

    def fill(self, seed: int) -> None:
        """The tokens."""
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


class PerToken(Gathered):
    """One scale for each token, stretched along K."""

    def __init__(self, form: str, where: str) -> None:
        super().__init__(form, where)
        self.a = (self.a[0], self.a[1][:, :1].clone().expand(-1, self.a[1].shape[1]))

    def fill(self, seed: int) -> None:
        values, scales = tokens(*self.a[0].shape, seed=seed, where=self.where)
        self.a[0].copy_(values)
        self.a[1][:, :1].copy_(scales[:, :1])


class Bf16Gathered(Gathered):
    def __init__(self, form: str, where: str) -> None:
        super().__init__(form, where)
        self.a = torch.empty(M, K, dtype=torch.bfloat16, device=where)

    def fill(self, seed: int) -> None:
        self.a.copy_(torch.randn(M, K, generator=torch.Generator().manual_seed(seed)))


class FusedMoe(Call):
    bf16_activations = False

    def __init__(self, form: str, where: str) -> None:
        super().__init__(where)
        self.x = torch.empty(M, K, dtype=torch.bfloat16, device=where)
        self.ids = integers([[0] * TOP_K] * M, where)
        self.routing = torch.empty(M, TOP_K, device=where)
        self.w13, self.w2 = weights(form, EXPERTS, 2 * N, K, where), weights(form, EXPERTS, K, N, where)
        self.d = torch.empty(M, K, dtype=torch.bfloat16, device=where)
        self.options = {"bf16_activations": self.bf16_activations}
        self.workspace = deep_gemm.moe_workspace(self.x, M, TOP_K, EXPERTS, K, N, fp4=True, **self.options)

    def inputs(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x.copy_(torch.randn(M, K, generator=generator))
        self.ids.copy_(torch.rand(M, EXPERTS, generator=generator).topk(TOP_K, 1).indices.int())
        self.routing.copy_(torch.rand(M, TOP_K, generator=generator))

    def run(self, **options: Any) -> None:
        deep_gemm.fused_moe(
            self.x, self.ids, self.routing, self.w13, self.w2, self.d, workspace=self.workspace, **self.options,
            **options,
        )  # fmt: skip


class Bf16FusedMoe(FusedMoe):
    bf16_activations = True


CALLS: list[tuple[Callable[[str, str], Any], str]] = [
    *((make, form) for make in (Dense, Masked, Contiguous, Gathered, FusedMoe) for form in FORMS),
    (PerToken, "mx_e4m3"),
    *((make, form) for make in (Bf16Gathered, Bf16FusedMoe) for form in ("mx_e4m3", "nv_exact")),
]
on_all_calls = pytest.mark.parametrize(
    ("make", "form"), CALLS, ids=[f"{make.__name__}-{form}" for make, form in CALLS]
)


@on_all_calls
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
@on_all_calls
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


@gpu
def test_a_first_wide_call_may_be_captured() -> None:
    """On a stream of its own, which has no workspace yet: that is allocated, and a new kernel loaded, in the capture."""
    packed = weights("mx_e4m3", 1, N, K, "cuda")
    a, d = tokens(512, K, seed=1, where="cuda"), torch.empty(512, N, dtype=torch.bfloat16, device="cuda")
    deep_gemm.fp8_fp4_gemm_nt(a, packed, d)
    expected = d.clone()
    wide = deep_gemm.Fp4GemmSpec(wide=True, warpgroups=2, k_blocks=1, stages=5, block_m=80)
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        deep_gemm.fp8_fp4_gemm_nt(a, packed, d, spec=wide)
    d.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(d, expected)


@gpu
@pytest.mark.parametrize("form", FORMS)
def test_checkpoints_on_the_gpu_are_packed_there(form: str) -> None:
    """Global scales of all kinds, slices that start anywhere: the bytes of the host's packer."""
    generator = torch.Generator().manual_seed(3)
    group = 32 if form.startswith("mx") else 16
    k = 176 // group * group
    whole = torch.randint(0, 256, (3, 71, k // 2), generator=generator, dtype=torch.uint8)
    codes, codes_there = whole[1:], whole.cuda()[1:]
    scales = torch.randint(1, 0x7F, (2, 71, k // group), generator=generator, dtype=torch.uint8)
    numbers = torch.rand((2, 71), generator=generator) + 0.5
    for shared in (None,) if group == 32 else (0.5, numbers[:, 0], numbers):
        there = shared.cuda() if torch.is_tensor(shared) else shared
        host = deep_gemm.pack_fp4_weights(codes, scales, shared, form=form)
        got = deep_gemm.pack_fp4_weights(codes_there, scales.cuda(), there, form=form)
        assert got.split and got.blobs.is_cuda and got.form == host.form
        for one, other in ((got.blobs, host.blobs), (got.row_scales, host.row_scales), (got.runs, host.runs)):
            assert torch.equal(one.cpu(), other)
        assert got.report["extra_runs"] == host.report["extra_runs"]


@gpu
def test_deepgemm_operands_on_the_gpu_are_packed_there() -> None:
    """Codes as int32, scales as four UE8M0 bytes in an int32 of any strides; powers of two in fp32."""
    generator = torch.Generator().manual_seed(4)
    codes = torch.randint(0, 256, (70, 96), generator=generator, dtype=torch.uint8)
    scales = torch.randint(110, 130, (70, 8), generator=generator, dtype=torch.uint8)
    expected = deep_gemm.pack_fp4_weights(codes, scales[:, :6].contiguous())
    words = scales.cuda().view(torch.int32).t().contiguous().t()
    imported = deep_gemm.fp4_formats.from_deepgemm(codes.cuda().view(torch.int32), words)
    powers = torch.exp2(scales[:, :6].float() - 127).cuda()
    for arguments in (imported, (codes.cuda(), powers)):
        got = deep_gemm.pack_fp4_weights(*arguments)
        assert torch.equal(got.blobs.cpu(), expected.blobs)
    with pytest.raises(ValueError, match="no powers of two"):
        deep_gemm.pack_fp4_weights(codes.cuda(), powers * 1.5)
    with pytest.raises(ValueError, match="expected a number"):
        small = torch.ones(70, 12, dtype=torch.uint8, device="cuda")
        deep_gemm.pack_fp4_weights(codes.cuda(), small, torch.ones(3, device="cuda"))


@gpu
def test_temporary_memory_belongs_to_the_stream_of_the_call() -> None:
    """What the current stream allocates behind a call on another one is not the workspace that kernels still use."""
    call, stream = FusedMoe("mx_e4m3", "cuda"), torch.cuda.Stream()
    call.inputs(1)
    call.run()
    torch.cuda.synchronize()
    expected = call.d.clone()
    arguments = (call.x, call.ids, call.routing, call.w13, call.w2)
    for _ in range(3):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)
        out = deep_gemm.fused_moe(*arguments, **call.options, stream=stream.cuda_stream)
        for size in (1 << 12, 1 << 16, 1 << 20, 1 << 24):
            torch.full((size,), -1, dtype=torch.int8, device="cuda")
        torch.cuda.synchronize()
        assert torch.equal(out, expected)
