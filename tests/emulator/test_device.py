"""The Device calls of the emulated GPU: memory, modules, launch limits, streams, events, graphs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deep_gemm import _C
from deep_gemm.testing.device import compile_kernel, load_kernel, run_kernel

COPY = 'extern "C" __global__ void f(const int* x, int* y) { y[threadIdx.x] = x[threadIdx.x] + 1; }'


@pytest.fixture
def emulator() -> _C.Device:
    return _C.Device("emulator:sm_90a")


@pytest.mark.parametrize(
    ("arch", "sms"), [("80", 108), ("89", 128), ("90a", 132), ("100a", 148), ("120a", 170), ("121a", 48)]
)
def test_models(arch: str, sms: int) -> None:
    device = _C.Device(f"emulator:sm_{arch}")
    assert (device.arch, device.num_sms, device.emulated, device.image_kind) == (arch, sms, True, "ptx")
    y = np.zeros(32, np.int32)
    run_kernel(device, COPY, "f", np.arange(32, dtype=np.int32), y)
    np.testing.assert_array_equal(y, np.arange(1, 33))


def test_memory_is_poisoned_and_checked(emulator: _C.Device) -> None:
    address = emulator.allocate(100)
    assert address % 512 == 0
    out = np.zeros(100, np.uint8)
    emulator.copy_to_host(out, address)
    assert (out == 0xEE).all(), "fresh memory must be recognisable"
    emulator.fill_bytes(address + 10, 7, 20)
    emulator.copy_on_device(address + 50, address + 10, 20)
    emulator.copy_to_host(out, address)
    assert (out[10:30] == 7).all() and (out[50:70] == 7).all() and out[30] == 0xEE
    with pytest.raises(_C.Error, match="ends 1 bytes past its allocation of 100 bytes"):
        emulator.copy_to_host(np.zeros(91, np.uint8), address + 10)
    emulator.release(address)
    with pytest.raises(_C.Error, match="is not the address of an allocation"):
        emulator.release(address)


def test_no_bytes_have_an_address(device: _C.Device) -> None:
    """On either device: callers need no case of their own for empty tensors."""
    first, second = device.allocate(0), device.allocate(0)
    assert first != 0 and second not in {0, first}
    device.release(first)
    device.release(second)


def test_out_of_memory(emulator: _C.Device) -> None:
    with pytest.raises(_C.Error, match="out of memory"):
        emulator.allocate(1 << 50)


def test_an_allocation_is_reachable_without_being_named(emulator: _C.Device) -> None:
    kernel = load_kernel(emulator, COPY, "f")
    address = emulator.allocate(256)
    emulator.copy_to_device(address, np.arange(32, dtype=np.int32))
    params = np.array([address, address + 128], np.uint64).tobytes()
    emulator.launch(kernel, params)
    out = np.zeros(32, np.int32)
    emulator.copy_to_host(out, address + 128)
    np.testing.assert_array_equal(out, np.arange(1, 33))
    with pytest.raises(_C.Error, match="inside the read-only range"):
        emulator.launch(kernel, params, memory=[(address, 256, False)])
    emulator.release(address)
    with pytest.raises(_C.Error, match="out of bounds"):
        emulator.launch(kernel, params)


@pytest.mark.parametrize(
    ("launch", "message"),
    [
        ({"block": 2048}, "2048 threads per block, at most 1024"),
        ({"block": 0}, "empty grid or block"),
        ({"grid": 3, "cluster": 2}, "cluster 2x1x1 must divide the grid 3x1x1"),
        ({"grid": 64, "cluster": 32}, "at most 16 blocks"),
        ({"smem_bytes": 1 << 20}, "bytes of shared memory"),
        ({"block": 256}, "__launch_bounds__ allow 128"),
    ],
)
def test_launch_limits(emulator: _C.Device, launch: dict[str, Any], message: str) -> None:
    source = 'extern "C" __global__ void __launch_bounds__(128) f(int* y) { y[0] = 1; }'
    with pytest.raises(_C.Error, match=message):
        run_kernel(emulator, source, "f", np.zeros(4, np.int32), **launch)


CLUSTER = """
extern "C" __global__ void f(unsigned* y) {
    unsigned rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    if (threadIdx.x == 0) y[blockIdx.x] = rank;
}"""


@pytest.mark.parametrize(
    ("device", "launch", "room"),
    [
        ("sm_90a,sms=8", {"cluster": 16, "block": 1024}, True),  # two blocks on each
        ("sm_90a,sms=7", {"cluster": 16, "block": 1024}, False),
        ("sm_90a,sms=4", {"cluster": 8, "block": 32, "smem_bytes": 100_000}, True),
        ("sm_90a,sms=4", {"cluster": 8, "block": 32, "smem_bytes": 200_000}, False),
        ("sm_90a,sms=1", {"cluster": 1, "block": 1024, "smem_bytes": 200_000}, True),
    ],
)
def test_clusters_are_resident_as_a_whole(device: str, launch: dict[str, Any], room: bool) -> None:
    """What max_active_clusters() says, and a launch keeps to."""
    where, y = _C.Device(f"emulator:{device}"), np.full(16, 99, np.uint32)
    kernel = load_kernel(where, CLUSTER, "f")
    assert (where.max_active_clusters(kernel, **launch) > 0) == room
    if room:
        run_kernel(where, CLUSTER, "f", y, grid=16, **launch)
        np.testing.assert_array_equal(y, np.arange(16) % launch["cluster"])
        return
    text = rf"CUDA_ERROR_INVALID_CLUSTER_SIZE: {device[-1]} multiprocessors have no room for a cluster of {launch['cluster']} blocks"
    with pytest.raises(_C.Error, match=text):
        run_kernel(where, CLUSTER, "f", y, grid=16, **launch)
    assert (y == 99).all()


@pytest.mark.parametrize(("arch", "most"), [("90a", 16), ("100a", 16), ("120a", 8), ("121a", 8), ("80", 1)])
def test_the_largest_cluster(arch: str, most: int) -> None:
    device, y = _C.Device(f"emulator:sm_{arch}"), np.zeros(32, np.uint32)
    source = COPY.replace("const int* x, int* y", "int* y").replace("x[threadIdx.x] + 1", "1")
    kernel = load_kernel(device, source, "f")
    assert device.max_active_clusters(kernel, block=32, cluster=most) > 0
    assert device.max_active_clusters(kernel, block=32, cluster=2 * most) == 0
    run_kernel(device, source, "f", y, grid=most, block=32, cluster=most)
    with pytest.raises(_C.Error, match=f"hold at most {most} blocks"):
        run_kernel(device, source, "f", y, grid=32, block=32, cluster=2 * most)


def test_cluster_dims_of_the_kernel_are_the_default(emulator: _C.Device) -> None:
    source = """
    extern "C" __global__ void __cluster_dims__(4, 1, 1) f(unsigned* y) {
        unsigned rank;
        asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
        y[blockIdx.x] = rank;
    }"""
    y = np.zeros(8, np.uint32)
    run_kernel(emulator, source, "f", y, grid=8, block=1)
    np.testing.assert_array_equal(y, np.arange(8) % 4)
    with pytest.raises(_C.Error, match="cluster 2x1x1, the kernel requires 4x1x1"):
        run_kernel(emulator, source, "f", y, grid=8, block=1, cluster=2)
    with pytest.raises(_C.Error, match="cluster 4x1x1 must divide the grid 6x1x1"):
        run_kernel(emulator, source, "f", y, grid=6, block=1)


def test_parameters_and_names_are_checked(emulator: _C.Device) -> None:
    kernel = load_kernel(emulator, COPY, "f")
    for size in (8, 17):
        with pytest.raises(
            ValueError, match=f"got {size} bytes of parameters, expected 16; pass the kernel's whole"
        ):
            emulator.launch(kernel, bytes(size))
    image = compile_kernel(COPY, "f").image
    with pytest.raises(_C.Error, match="the module has no kernel 'g'"):
        emulator.load_module(image, "m").kernel("g")
    with pytest.raises(_C.Error, match="the PTX is for sm_90a, this device is sm_100a"):
        _C.Device("emulator:sm_100a").load_module(image, "m")
    with pytest.raises(_C.Error, match="not PTX text"):
        emulator.load_module(b"\x7fELF", "m")


def test_occupancy(emulator: _C.Device) -> None:
    kernel = load_kernel(emulator, COPY, "f")
    assert emulator.max_active_clusters(kernel, block=128, smem_bytes=200_000) == 132
    assert emulator.max_active_clusters(kernel, block=128, smem_bytes=100_000) == 264
    assert emulator.max_active_clusters(kernel, block=1024) == 264
    assert emulator.max_active_clusters(kernel, block=128, cluster=2, smem_bytes=200_000) == 66
    assert emulator.max_active_clusters(kernel, block=128, smem_bytes=1 << 20) == 0


def test_graphs_replay_launches_and_copies(emulator: _C.Device) -> None:
    kernel = load_kernel(emulator, COPY, "f")
    a, b = emulator.allocate(128), emulator.allocate(128)
    stream = emulator.create_stream()
    emulator.fill_bytes(a, 0, 128)
    emulator.begin_capture(stream)
    emulator.launch(kernel, np.array([a, b], np.uint64).tobytes(), stream=stream)
    emulator.copy_on_device(a, b, 128, stream=stream)
    graph = emulator.end_capture(stream)
    out = np.zeros(32, np.int32)
    emulator.copy_to_host(out, a)
    np.testing.assert_array_equal(out, 0, "capture must not run anything")
    for _ in range(3):
        emulator.launch_graph(graph, stream=stream)
    emulator.synchronize(stream)
    emulator.copy_to_host(out, a)
    np.testing.assert_array_equal(out, 3)
    emulator.destroy_graph(graph)
    with pytest.raises(_C.Error, match="graph handle is not one of this device's"):
        emulator.launch_graph(graph)
    with pytest.raises(_C.Error, match="end_capture on a stream that is not being captured"):
        emulator.end_capture(stream)
    emulator.destroy_stream(stream)


def test_copies_in_a_capture(emulator: _C.Device) -> None:
    """A graph has its own copy of what came from the host; a copy to the host would have to wait."""
    address, stream = emulator.allocate(4096), emulator.create_stream()
    emulator.begin_capture(stream)
    values = np.arange(1024, dtype=np.int32)
    emulator.copy_to_device(address, values.view(np.uint8), stream=stream)
    values[:] = -1
    out = np.zeros(1024, np.int32)
    with pytest.raises(
        _C.Error, match="copy_to_host, of a stream that is being captured; end the capture first"
    ):
        emulator.copy_to_host(out.view(np.uint8), address, stream=stream)
    emulator.copy_to_host(out.view(np.uint8), address)  # another stream
    assert (out.view(np.uint8) == 0xEE).all()
    graph = emulator.end_capture(stream)
    emulator.launch_graph(graph)
    emulator.copy_to_host(out.view(np.uint8), address, stream=stream)
    np.testing.assert_array_equal(out, np.arange(1024))


def test_events_measure_host_time(emulator: _C.Device) -> None:
    start, stop = emulator.create_event(), emulator.create_event()
    with pytest.raises(_C.Error, match="never recorded"):
        emulator.elapsed_ms(start, stop)
    emulator.record(start)
    run_kernel(emulator, COPY, "f", np.zeros(32, np.int32), np.zeros(32, np.int32))
    emulator.record(stop)
    assert emulator.elapsed_ms(start, stop) > 0
    emulator.destroy_event(start)
    emulator.destroy_event(stop)
