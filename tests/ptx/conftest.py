"""Fixtures of the instruction tests: a tiny CUDA C++ kernel body in, arrays out, on every device there is.

A test names the arguments of its kernel; the harness makes the Params struct, compiles, copies, launches and copies
back. Each test runs with the same expectations on the emulated GPU and, where there is one, on the real one.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pytest

from deep_gemm import _C

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

C_TYPES = {
    "u1": "u8",
    "i1": "i8",
    "u2": "u16",
    "i2": "i16",
    "u4": "u32",
    "i4": "i32",
    "u8": "u64",
    "i8": "i64",
    "f4": "float",
    "f8": "double",
}
HEADERS = ("base", "shared", "mbarrier", "copy", "wgmma")


@dataclass(frozen=True)
class TensorMap:
    """A tensor map over one of the kernel's arrays, encoded once the array has a device address."""

    array: str
    format: str
    dims: tuple[int, ...]
    strides_bytes: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: int = 0


Argument: TypeAlias = "Array | int | TensorMap"


def c_type(argument: Argument) -> str:
    if isinstance(argument, TensorMap):
        return "TensorMap"
    if isinstance(argument, int):
        return "u64"
    code = argument.dtype.str[1:]
    return C_TYPES.get(code, {1: "u8", 2: "u16"}.get(argument.dtype.itemsize, "u8")) + "*"


@dataclass
class Runner:
    """Runs kernel bodies on one device. The body sees `p`, the Params struct, and everything in deep_gemm::ptx."""

    device: Any
    _kernels: dict[tuple[str, str], Any] = field(default_factory=dict)

    @property
    def emulated(self) -> bool:
        return bool(self.device.emulated)

    def __call__(
        self,
        body: str,
        arguments: Mapping[str, Argument],
        *,
        grid: int = 1,
        block: int = 32,
        cluster: int = 1,
        smem_bytes: int = 0,
        prelude: str = "",
    ) -> None:
        """Launches; arrays are updated in place with what the kernel left in them."""
        ordered = sorted(
            arguments.items(), key=lambda item: not isinstance(item[1], TensorMap)
        )  # 64-byte aligned first
        fields = "\n".join(f"    {c_type(value)} {name};" for name, value in ordered)
        includes = "\n".join(f"#include <deep_gemm/ptx/{name}.h>" for name in HEADERS)
        source = (
            f"{includes}\nusing namespace deep_gemm;\nusing namespace deep_gemm::ptx;\n{prelude}\n"
            f"struct Params {{\n{fields}\n}};\n"
            f'extern "C" __global__ void __launch_bounds__({block}) kernel(__grid_constant__ const Params p) {{\n'
            f"{body}\n}}\n"
        )
        self.launch(
            source, "kernel", dict(ordered), grid=grid, block=block, cluster=cluster, smem_bytes=smem_bytes
        )

    def launch(
        self,
        source: str,
        entry: str,
        arguments: Mapping[str, Argument],
        *,
        grid: int,
        block: int,
        cluster: int = 1,
        smem_bytes: int = 0,
    ) -> None:
        """The same for a whole source text whose Params has the arguments in this order."""
        kernel = self._kernel(source, entry)
        addresses: dict[str, int] = {}
        try:
            for name, value in arguments.items():
                if isinstance(value, np.ndarray):
                    addresses[name] = self.device.allocate(max(value.nbytes, 16))
                    if value.nbytes:
                        self.device.copy_to_device(
                            addresses[name], np.ascontiguousarray(value).view(np.uint8)
                        )
            params = b"".join(self._pack(value, name, addresses) for name, value in arguments.items())
            if any(isinstance(value, TensorMap) for value in arguments.values()):
                params += bytes(-len(params) % 64)  # the struct is as aligned as its maps
            arrays = {name: value for name, value in arguments.items() if isinstance(value, np.ndarray)}
            memory = [(addresses[name], value.nbytes, True) for name, value in arrays.items() if value.nbytes]
            self.device.launch(
                kernel, params, grid=grid, block=block, cluster=cluster, smem_bytes=smem_bytes, memory=memory
            )
            for name, value in arrays.items():
                if value.nbytes:
                    self.device.copy_to_host(value.view(np.uint8), addresses[name])
        finally:
            for address in addresses.values():
                self.device.release(address)

    def _pack(self, value: Argument, name: str, addresses: Mapping[str, int]) -> bytes:
        if isinstance(value, TensorMap):
            return self.device.encode_tensor_map(
                address=addresses[value.array],
                format=value.format,
                dims=list(value.dims),
                strides_bytes=list(value.strides_bytes),
                box=list(value.box),
                swizzle=value.swizzle,
            )
        return struct.pack("<Q", addresses[name] if isinstance(value, np.ndarray) else value & (2**64 - 1))

    def _kernel(self, source: str, entry: str) -> Any:
        key = (source, entry)
        if key not in self._kernels:
            compiled = _C.compile(source, [entry], arch=self.device.arch, kind=self.device.image_kind)
            module = self.device.load_module(compiled.image, "ptx test")
            self._kernels[key] = (module, module.kernel(compiled.lowered_names[0]))
        return self._kernels[key][1]


@pytest.fixture(scope="session")
def runners() -> Callable[..., Runner]:
    """Runner of a named device; compiled kernels are kept for the session."""
    made: dict[str, Runner] = {}

    def get(name: str, **options: int | str) -> Runner:
        key = name + repr(sorted(options.items()))
        if key not in made:
            made[key] = Runner(_C.Device(name, **options))
        return made[key]

    return get


def hopper_devices() -> list[str]:
    """The emulated Hopper GPU, and the real one where there is one."""
    try:
        has_gpu = _C.Device("cuda").arch == "90a"
    except _C.Error:
        has_gpu = False
    return ["emulator:sm_90a", "cuda"] if has_gpu else ["emulator:sm_90a"]


@pytest.fixture(params=hopper_devices())
def run(request: pytest.FixtureRequest, runners: Callable[..., Runner]) -> Runner:
    """A Runner on each Hopper device."""
    runner = runners(request.param)
    assert runner.emulated == request.param.startswith("emulator")
    return runner


@pytest.fixture
def run_blackwell(runners: Callable[..., Runner]) -> Runner:
    """Instructions that first exist on sm_100a: emulated only."""
    return runners("emulator:sm_100a")


@pytest.fixture(params=range(4))
def run_seed(request: pytest.FixtureRequest, runners: Callable[..., Runner]) -> Runner:
    """The emulated Hopper GPU under several schedules."""
    return runners("emulator:sm_90a", seed=request.param)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240521)


@pytest.fixture
def tensor_map() -> type[TensorMap]:
    return TensorMap
