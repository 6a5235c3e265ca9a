"""PyTorch tensors: read through DLPack's C exchange table, on the host for the emulator, on the GPU with its streams."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

import deep_gemm
from deep_gemm import utils
from deep_gemm.testing import calc_diff

torch: Any = pytest.importorskip("torch")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")
emulated = {"device": "emulator"}


def problem(m: int, n: int, k: int, where: str) -> tuple[Any, Any, Any, Any]:
    """(a, b) as FP8 pairs, an output, and the product of the unquantised matrices."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn((rows, k), generator=generator).to(where) for rows in (m, n))
    d = torch.full((m, n), float("nan"), dtype=torch.bfloat16, device=where)
    return utils.per_token_cast_to_fp8(x), utils.per_block_cast_to_fp8(y), d, x @ y.T


def test_host_tensors_on_the_emulator() -> None:
    a, b, d, expected = problem(20, 72, 256, "cpu")
    deep_gemm.fp8_gemm_nt(a, b, d, **emulated)
    assert calc_diff(d, expected) < 1e-3


def test_same_bits_as_numpy() -> None:
    a, b, d, _ = problem(20, 72, 256, "cpu")
    deep_gemm.fp8_gemm_nt(a, b, d, **emulated)

    import ml_dtypes

    def as_numpy(pair: Any) -> Any:
        return pair[0].view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn), pair[1].numpy()

    out = np.zeros((20, 72), ml_dtypes.bfloat16)
    deep_gemm.fp8_gemm_nt(as_numpy(a), as_numpy(b), out, **emulated)
    assert (out.view(np.int16) == d.view(torch.int16).numpy()).all()


def test_parameters_and_views() -> None:
    """Subclasses of Tensor, transposed scales, a slice of a larger output."""
    a, b, d, _ = problem(20, 72, 256, "cpu")
    deep_gemm.fp8_gemm_nt(a, b, d, **emulated)
    weights = torch.nn.Parameter(b[0], requires_grad=False), torch.nn.Parameter(b[1], requires_grad=False)
    wide = torch.zeros((20, 100), dtype=torch.bfloat16)
    transposed = a[0], a[1].T.contiguous().T
    deep_gemm.fp8_gemm_nt(transposed, weights, wide[:, :72], **emulated)
    assert torch.equal(wide[:, :72], d)
    assert (wide[:, 72:] == 0).all()


def test_host_tensors_are_no_mistake_unless_a_gpu_is_there() -> None:
    a, b, d, _ = problem(4, 64, 128, "cpu")
    if torch.cuda.is_available():
        with pytest.raises(ValueError, match="is in host memory, expected GPU memory"):
            deep_gemm.fp8_gemm_nt(a, b, d)
    else:
        deep_gemm.fp8_gemm_nt(a, b, d)


def test_types_it_has_no_use_for() -> None:
    a, b, d, _ = problem(4, 64, 128, "cpu")
    with pytest.raises(TypeError, match=r"is torch.float64, expected"):
        deep_gemm.fp8_gemm_nt(a, b, d.double(), **emulated)
    with pytest.raises(TypeError, match=r"is torch.uint8, expected"):
        deep_gemm.fp8_gemm_nt((a[0].view(torch.uint8), a[1]), b, d, **emulated)
    typed = deep_gemm.view_as(a[0].view(torch.uint8), "fp8_e4m3")
    deep_gemm.fp8_gemm_nt((typed, a[1]), b, d, **emulated)


@gpu
@pytest.mark.parametrize(("m", "n", "k"), [(1, 4096, 7168), (128, 576, 7168), (1000, 2112, 7168)])
def test_gpu_tensors(m: int, n: int, k: int) -> None:
    a, b, d, expected = problem(m, n, k, "cuda")
    deep_gemm.fp8_gemm_nt(a, b, d)
    assert calc_diff(d, expected) < 1e-3


@gpu
def test_mixed_devices() -> None:
    a, b, d, _ = problem(4, 64, 128, "cuda")
    with pytest.raises(ValueError, match="in host memory"):
        deep_gemm.fp8_gemm_nt((a[0], a[1].cpu()), b, d)
    with pytest.raises(ValueError, match="expected memory of the device that was asked for"):
        deep_gemm.fp8_gemm_nt((a[0], a[1].cpu()), b, d, device="emulator")


@gpu
def test_current_stream() -> None:
    """Work queued on the stream before the call is seen by it, without any synchronisation."""
    a, b, d, expected = problem(64, 4096, 7168, "cuda")
    deep_gemm.fp8_gemm_nt(a, b, d)
    stream = torch.cuda.Stream()
    values = torch.zeros_like(a[0])
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        values.copy_(a[0])
        deep_gemm.fp8_gemm_nt((values, a[1]), b, d)
    stream.synchronize()
    assert calc_diff(d, expected) < 1e-3


@gpu
def test_graph_capture() -> None:
    a, b, d, expected = problem(64, 4096, 7168, "cuda")
    deep_gemm.fp8_gemm_nt(a, b, d)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        deep_gemm.fp8_gemm_nt(a, b, d)
        deep_gemm.fp8_gemm_nt(a, b, d)
    d.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    assert calc_diff(d, expected) < 1e-3


def powers_of_two(shape: tuple[int, ...]) -> Any:
    generator = torch.Generator().manual_seed(0)
    return (torch.randint(100, 150, shape, generator=generator, dtype=torch.int32) << 23).view(torch.float32)


@gpu
@pytest.mark.parametrize("shape", [(4097, 57), (2, 70, 9)], ids=str)
def test_layouts_of_scales(shape: tuple[int, ...]) -> None:
    """Kernels on the GPU give what PyTorch gives on the host, also in a capture."""
    host = powers_of_two(shape)
    scales = host.cuda()
    for source, moved in ((host, scales), (host.mT.contiguous().mT, scales.mT.contiguous().mT)):
        for helper in (
            utils.get_mn_major_tma_aligned_tensor,
            utils.get_mn_major_tma_aligned_packed_ue8m0_tensor,
        ):
            expected, got = helper(source), helper(moved)
            assert torch.equal(got.cpu(), expected) and got.stride() == expected.stride()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        packed = utils.get_mn_major_tma_aligned_packed_ue8m0_tensor(scales)
    scales.mul_(4)
    graph.replay()
    assert torch.equal(packed.cpu(), utils.get_mn_major_tma_aligned_packed_ue8m0_tensor(host * 4))


@gpu
def test_layouts_of_scales_grouped_along_k() -> None:
    ks = [384, 128, 0, 640]
    host = powers_of_two((9, 70))
    arguments = (torch.tensor(ks, dtype=torch.int32), ks, 128, 128)
    expected = utils.get_k_grouped_mn_major_tma_aligned_packed_ue8m0_tensor(host, *arguments)
    got = utils.get_k_grouped_mn_major_tma_aligned_packed_ue8m0_tensor(
        host.cuda(), arguments[0].cuda(), *arguments[1:]
    )
    assert torch.equal(got.cpu(), expected) and got.stride() == expected.stride()


@gpu
def test_threads_on_their_own_streams() -> None:
    failures: list[BaseException] = []

    def work(m: int) -> None:
        try:
            a, b, d, expected = problem(m, 576, 1024, "cuda")
            with torch.cuda.stream(torch.cuda.Stream()):
                torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
                for _ in range(20):
                    deep_gemm.fp8_gemm_nt(a, b, d)
                torch.cuda.current_stream().synchronize()
            assert calc_diff(d, expected) < 1e-3
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(m,)) for m in (1, 33, 64, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@gpu
def test_repeats_are_equal_bit_by_bit() -> None:
    a, b, d, _ = problem(100, 2112, 7168, "cuda")
    deep_gemm.fp8_gemm_nt(a, b, d)
    first = d.clone()
    for _ in range(20):
        d.fill_(float("nan"))
        deep_gemm.fp8_gemm_nt(a, b, d)
        assert torch.equal(d.view(torch.int16), first.view(torch.int16))


@gpu
def test_cupy_arrays() -> None:
    cupy: Any = pytest.importorskip("cupy")
    a, b, d, expected = problem(32, 576, 1024, "cuda")

    def as_cupy(tensor: Any) -> Any:
        if tensor.dtype == torch.float8_e4m3fn:
            return deep_gemm.view_as(cupy.from_dlpack(tensor.view(torch.uint8)), "fp8_e4m3")
        return cupy.from_dlpack(tensor)

    out = cupy.zeros(d.shape, cupy.float32)
    stream = cupy.cuda.Stream(non_blocking=True)
    torch.cuda.synchronize()
    with stream:
        deep_gemm.fp8_gemm_nt(tuple(map(as_cupy, a)), tuple(map(as_cupy, b)), out)
    stream.synchronize()
    assert calc_diff(torch.from_dlpack(out), expected) < 1e-3
