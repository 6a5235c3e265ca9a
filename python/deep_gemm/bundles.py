"""Bundles: the kernels of many problems in one file, for machines without a compiler."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from deep_gemm import _C
from deep_gemm.paths import path_text, require_folder

__all__ = ["open_bundle", "write_bundle"]


def _target(device: Any) -> tuple[str, str]:
    """(architecture, kind of image) of a device, or of "90a:132" for one that is not here."""
    if isinstance(device, str) and device[:1].isdigit():
        return device.partition(":")[0], "cubin"
    found = device if isinstance(device, _C.Device) else _C.Device(device or "")
    return found.arch, found.image_kind


def write_bundle(
    path: str | Path,
    problems: Iterable[str],
    device: Any = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> int:
    """Builds every kernel that these problems can choose for 1 to m rows and writes them into one file; their number.

    Problems are lines as `explain` prints them and `warmup` takes them. `device`: a device or its name; "90a:132", an
    architecture and its number of multiprocessors, stands for a GPU that is not here. progress(done, total, kernel) is
    called after each. The folder of `path` must exist. A process finds the kernels after open_bundle(path) or with
    DG_JIT_BUNDLES=path, before it looks anywhere else and without NVRTC. Kernels belong to a version of this library:
    write the file again after an update.
    """
    if isinstance(problems, str):
        raise TypeError(
            f"write_bundle: problems is the str '{problems}', expected a sequence of problems; put it in a list"
        )
    target, lines = path_text("write_bundle", path), list(problems)
    if not lines:
        raise ValueError(
            "write_bundle: got no problems, expected at least one such as 'gemm m=64 n=7168 k=2048'"
        )
    require_folder("write_bundle", target)  # before anything is compiled
    arch, kind = _target(device)
    specs = dict.fromkeys(spec for line in lines for spec in _C.enumerate_specs(line, device))
    sources = [_C.kernel_source(spec) for spec in specs]

    def told(done: int, total: int, name: str, origin: str, seconds: float) -> None:
        if progress is not None:
            progress(done, total, name)

    _C.write_bundle(target, sources, arch=arch, kind=kind, progress=told)
    return len(sources)


def open_bundle(path: str | Path) -> int:
    """Looks for kernels in this file first, from now on and in this process; returns how many it holds."""
    return _C.open_bundle(path_text("open_bundle", path))
