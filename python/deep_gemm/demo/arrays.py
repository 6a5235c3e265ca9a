"""Arrays for the demo on either device, without a framework.

The emulated GPU works on numpy arrays as they are. On a GPU, DeviceArray is memory of the driver that exports
itself through DLPack, the protocol by which the operations read the tensors of any framework.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from deep_gemm import _C

AnyArray = npt.NDArray[Any]

DLPACK_CUDA = 2
# DLPack's type code and bits.
DLPACK_TYPES = {
    "float32": (2, 32),
    "float16": (2, 16),
    "int32": (0, 32),
    "int8": (0, 8),
    "uint8": (1, 8),
    "bfloat16": (4, 16),
    "float8_e4m3fn": (10, 8),
    "float8_e8m0fnu": (14, 8),
}


class DLTensor(ctypes.Structure):
    """DLPack's description of a tensor, followed by the two fields of its managed form.

    The deleter stays null: a DeviceArray owns everything and outlives the call that it is passed to.
    """

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("type_code", ctypes.c_uint8),
        ("type_bits", ctypes.c_uint8),
        ("type_lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


class DeviceArray:
    """A packed array in GPU memory; freed with the object."""

    def __init__(self, device: _C.Device, source: AnyArray) -> None:
        source = np.ascontiguousarray(source)
        self._owner: DeviceArray | None = None  # of the memory, where it is not this object
        self._device, self._shape, self._dtype = device, source.shape, source.dtype
        self._address = device.allocate(max(source.nbytes, 1))
        if source.nbytes:
            device.copy_to_device(self._address, source.view(np.uint8))
        code, bits = DLPACK_TYPES[source.dtype.name]
        extents = ctypes.c_int64 * source.ndim
        self._extents = extents(*source.shape)
        self._strides = extents(*(stride // source.itemsize for stride in source.strides))
        place = (self._address, DLPACK_CUDA, device.properties["ordinal"])
        self._managed = DLTensor(*place, source.ndim, code, bits, 1, self._extents, self._strides)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    def __del__(self) -> None:
        if hasattr(self, "_address") and self._owner is None:
            self._device.release(self._address)

    def __dlpack_device__(self) -> tuple[int, int]:
        return DLPACK_CUDA, self._managed.device_id

    def __dlpack__(self, **_: object) -> object:
        new_capsule = ctypes.pythonapi.PyCapsule_New
        new_capsule.restype = ctypes.py_object
        new_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return new_capsule(ctypes.addressof(self._managed), b"dltensor", None)

    def strided(self, shape: tuple[int, ...], strides: tuple[int, ...]) -> DeviceArray:
        """The same memory with another shape and strides, in elements."""
        view = DeviceArray.__new__(DeviceArray)
        view._owner, view._device, view._shape, view._dtype = self, self._device, shape, self._dtype
        view._address = self._address
        extents = ctypes.c_int64 * len(shape)
        view._extents, view._strides = extents(*shape), extents(*strides)
        place = (self._address, DLPACK_CUDA, self._managed.device_id)
        kind = (self._managed.type_code, self._managed.type_bits, 1)
        view._managed = DLTensor(*place, len(shape), *kind, view._extents, view._strides)
        return view

    def numpy(self) -> AnyArray:
        """A copy on the host; waits for the work before it."""
        host = np.empty(self._shape, self._dtype)
        if host.nbytes:
            self._device.copy_to_host(host.view(np.uint8), self._address)
        return host


def put(device: _C.Device, array: AnyArray) -> AnyArray | DeviceArray:
    """The array as a tensor of the device."""
    return array if device.emulated else DeviceArray(device, array)


def strided(
    tensor: AnyArray | DeviceArray, shape: tuple[int, ...], strides: tuple[int, ...]
) -> AnyArray | DeviceArray:
    """A view of the tensor's memory with this shape and strides, in elements."""
    if isinstance(tensor, DeviceArray):
        return tensor.strided(shape, strides)
    in_bytes = [stride * tensor.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(tensor, shape, in_bytes)


def take(tensor: AnyArray | DeviceArray) -> AnyArray:
    """The tensor's contents as a numpy array."""
    return tensor.numpy() if isinstance(tensor, DeviceArray) else tensor
