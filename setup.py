"""Builds the extension module by driving CMake: CMakeLists.txt is the one build, this file only calls it.

`pip install .` and `pip install -e .` both end here. Environment: DG_BUILD_DIR keeps the CMake build tree
between calls (default: pip's own temporary one), DG_CMAKE_ARGS adds CMake arguments, DG_JOBS sets the number
of compile jobs (default: all cores).
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def version() -> str:
    """The version is written once, in CMakeLists.txt."""
    match = re.search(r"project\(deep_gemm VERSION ([0-9.]+)", (ROOT / "CMakeLists.txt").read_text())
    if match is None:
        raise RuntimeError("CMakeLists.txt has no line `project(deep_gemm VERSION x.y.z ...`")
    return match.group(1)


class CMakeBuild(build_ext):
    """Configures and builds the CMake target `_C`, and puts the module where setuptools wants it."""

    def build_extension(self, ext: Extension) -> None:
        module = Path(self.get_ext_fullpath(ext.name)).resolve()
        build_dir = Path(os.environ.get("DG_BUILD_DIR") or self.build_temp).resolve()
        jobs = os.environ.get("DG_JOBS") or str(os.cpu_count() or 1)
        configure = [
            "cmake", "--log-level=WARNING", "-S", str(ROOT), "-B", str(build_dir), "-G", "Ninja",
            "-DDG_PYTHON=ON",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={module.parent}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            *shlex.split(os.environ.get("DG_CMAKE_ARGS", "")),
        ]  # fmt: skip
        build = ["cmake", "--build", str(build_dir), "--target", "_C", "-j", jobs]
        for command in (configure, build):
            if subprocess.run(command, check=False).returncode != 0:
                raise SystemExit(f"failed: {shlex.join(command)}")
        if not module.exists():
            raise RuntimeError(f"the CMake target _C was built but {module} is not there")


setup(
    version=version(),
    ext_modules=[Extension("deep_gemm._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
