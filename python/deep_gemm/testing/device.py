"""Compile one kernel from source text and run it on numpy arrays, on the emulated GPU or a real one.

    import numpy as np
    from deep_gemm import _C
    from deep_gemm.testing.device import run_kernel

    device = _C.Device("emulator:sm_90a", seed=3)
    x = np.arange(64, dtype=np.float32)
    run_kernel(device, '''
        #include <deep_gemm/ptx/base.h>
        __global__ void twice(float* x) { x[threadIdx.x] *= 2; }
    ''', "twice", x, block=64)

Arguments become the kernel's parameters in order:
  numpy array         a pointer to its first element; zero-copy on the emulator, copied there and back on CUDA
  readonly(array)     the same, and the emulator faults if the kernel writes to it
  numpy scalar        by value, in its own type
  int, float, bool    by value, as C's `int`, `float`, `bool`
  Struct(data, align) bytes by value
  TensorMap(x, box)   a `__grid_constant__ const deep_gemm::TensorMap`
Compiled images are kept per process, so a loop over seeds compiles once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import TracebackType
from typing import Any

import numpy as np

from deep_gemm import _C

Dim = int | tuple[int, ...]

FORMATS = {
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "float8_e4m3fn": "fp8_e4m3",
    "float8_e5m2": "fp8_e5m2",
    "float8_e8m0fnu": "fp8_ue8m0",
    "int8": "int8",
    "uint8": "int8",
    "int32": "int32",
    "uint32": "int32",
}


@dataclass(frozen=True)
class ReadOnly:
    """An array that the kernel may read but not write."""

    array: np.ndarray


def readonly(array: np.ndarray) -> ReadOnly:
    return ReadOnly(array)


@dataclass(frozen=True)
class Struct:
    """Bytes passed by value, at an offset that is a multiple of `align`."""

    data: bytes
    align: int = 8


@dataclass(frozen=True)
class TensorMap:
    """A TMA descriptor of a row-major array; sizes are innermost first, as in PTX.

    By default it describes the array itself. `dims`, `strides_bytes` and `format` describe it otherwise, for
    instance packed FP4 (`format="fp4_e2m1"` on a uint8 array, dims in elements) or a view with gaps.
    """

    array: np.ndarray
    box: Sequence[int]
    swizzle: int = 0
    dims: Sequence[int] | None = None
    strides_bytes: Sequence[int] | None = None
    format: str | None = None
    writable: bool = False

    def encode(self, device: _C.Device, address: int) -> bytes:
        """The 128 bytes for this device, with the array at `address`."""
        dims = list(self.dims) if self.dims is not None else list(reversed(self.array.shape))
        strides = self.strides_bytes
        if strides is None:
            strides = list(reversed(self.array.strides[:-1]))
        return device.encode_tensor_map(
            address=address,
            format=self.format or FORMATS[self.array.dtype.name],
            dims=dims,
            strides_bytes=list(strides),
            box=list(self.box),
            swizzle=self.swizzle,
        )


def bytes_of(array: np.ndarray) -> np.ndarray:
    """The array's memory as bytes: ml_dtypes arrays have no buffer interface of their own."""
    return array.reshape(-1).view(np.uint8)


class Memory:
    """Where arrays live on the device during a `with` block. On the emulator: where they already are."""

    def __init__(self, device: _C.Device) -> None:
        self.device = device
        self.ranges: list[tuple[int, int, bool]] = []  # (address, bytes, writable), as launch() wants them
        self._copies: list[tuple[np.ndarray, int, bool]] = []

    def __enter__(self) -> Memory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for array, address, writable in self._copies:
            if writable and error is None:
                self.device.copy_to_host(bytes_of(array), address)
            self.device.release(address)

    def address(self, array: np.ndarray, writable: bool = True) -> int:
        """The device address of the array's first element; asked again, the same one."""
        if not array.flags.c_contiguous:
            raise ValueError(
                "run_kernel: got an array with gaps, expected a C-contiguous one; pass its base array"
            )
        if writable and not array.flags.writeable:
            raise ValueError("run_kernel: got a read-only array as an output; pass readonly(array)")
        for known, address, known_writable in self._copies:
            if known is array and known_writable >= writable:
                return address
        address = array.ctypes.data if self.device.emulated else self._upload(array, writable)
        self.ranges.append((address, array.nbytes, writable))
        return address

    def _upload(self, array: np.ndarray, writable: bool) -> int:
        address = self.device.allocate(array.nbytes)
        self.device.copy_to_device(address, bytes_of(array))
        self._copies.append((array, address, writable))
        return address


@dataclass
class ParameterBuffer:
    """The kernel's parameters laid out as the compiler lays them out: each at its natural alignment."""

    memory: Memory
    data: bytearray = field(default_factory=bytearray)

    def add(self, argument: Any) -> None:
        data, align = self._encode(argument)
        self.data.extend(bytes(-len(self.data) % align))
        self.data.extend(data)

    def _encode(self, argument: Any) -> tuple[bytes, int]:
        if isinstance(argument, ReadOnly):
            return self._pointer(self.memory.address(argument.array, writable=False))
        if isinstance(argument, np.ndarray):
            return self._pointer(self.memory.address(argument))
        if isinstance(argument, TensorMap):
            address = self.memory.address(argument.array, argument.writable)
            return argument.encode(self.memory.device, address), 64
        if isinstance(argument, Struct):
            return argument.data, argument.align
        if isinstance(argument, np.generic):
            return argument.tobytes(), argument.dtype.itemsize
        for python_type, dtype in ((bool, np.bool_), (int, np.int32), (float, np.float32)):
            if isinstance(argument, python_type):
                return dtype(argument).tobytes(), np.dtype(dtype).itemsize
        raise TypeError(
            f"run_kernel: got an argument of type {type(argument).__name__}, expected a numpy array or "
            "scalar, int, float, bool, readonly(array), Struct or TensorMap; "
            "convert it"
        )

    @staticmethod
    def _pointer(address: int) -> tuple[bytes, int]:
        return np.uint64(address).tobytes(), 8


@lru_cache(maxsize=256)
def compile_kernel(
    source: str, entry: str, arch: str = "90a", kind: str = "ptx", options: tuple[str, ...] = ()
) -> _C.Compiled:
    """NVRTC's result for one source text, kept per process."""
    return _C.compile(source, [entry], arch=arch, kind=kind, options=list(options))


def load_kernel(device: _C.Device, source: str, entry: str, options: Iterable[str] = ()) -> _C.Kernel:
    """Compiles for the device's architecture and loads. The kernel keeps its module alive."""
    compiled = compile_kernel(source, entry, device.arch, device.image_kind, tuple(options))
    return device.load_module(compiled.image, entry).kernel(compiled.lowered_names[0])


def launch_kernel(
    device: _C.Device,
    kernel: _C.Kernel,
    *arguments: Any,
    grid: Dim = 1,
    block: Dim = 32,
    cluster: Dim = 1,
    smem_bytes: int = 0,
    extra_memory: Sequence[tuple[int, int, bool]] = (),
) -> None:
    """Launches a loaded kernel once with `arguments` and waits. See the module's docstring.

    `extra_memory` adds (address, num_bytes, writable) ranges reached by pointers inside a Struct.
    """
    with Memory(device) as memory:
        buffer = ParameterBuffer(memory)
        for argument in arguments:
            buffer.add(argument)
        device.launch(
            kernel,
            bytes(buffer.data),
            grid=grid,
            block=block,
            cluster=cluster,
            smem_bytes=smem_bytes,
            memory=[*memory.ranges, *extra_memory],
        )
        device.synchronize()


def run_kernel(
    device: _C.Device, source: str, entry: str, *arguments: Any, options: Iterable[str] = (), **launch: Any
) -> None:
    """Compiles `source` and launches `entry` once; `launch` as in launch_kernel: grid, block, ...

    `entry` is a name expression: "my_kernel" or "deep_gemm::my_kernel<4>". `options` are extra NVRTC options.
    """
    launch_kernel(device, load_kernel(device, source, entry, options), *arguments, **launch)


def run_ptx(device: _C.Device, ptx: str, entry: str, *arguments: Any, **launch: Any) -> None:
    """Launches `entry` of hand-written PTX: what no compiler emits, such as broken waits."""
    launch_kernel(device, device.load_module(ptx.encode(), entry).kernel(entry), *arguments, **launch)
