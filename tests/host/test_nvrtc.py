"""Where NVRTC is looked for, and what is said when it is not there, too old or too small for an architecture."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]

OLD = """
#include <cstring>
extern "C" {
int nvrtcVersion(int* major, int* minor) { *major = 11; *minor = 8; return 0; }
int nvrtcGetNumSupportedArchs(int* n) { *n = 0; return 0; }
int nvrtcGetSupportedArchs(int*) { return 0; }
const char* nvrtcGetErrorString(int) { return "?"; }
#define NONE(name) int name() { return 1; }
NONE(nvrtcCreateProgram) NONE(nvrtcDestroyProgram) NONE(nvrtcAddNameExpression) NONE(nvrtcCompileProgram)
NONE(nvrtcGetLoweredName) NONE(nvrtcGetProgramLogSize) NONE(nvrtcGetProgramLog) NONE(nvrtcGetCUBINSize)
NONE(nvrtcGetCUBIN) NONE(nvrtcGetPTXSize) NONE(nvrtcGetPTX)
}
"""


@pytest.fixture
def nvrtc_path(run_python: Run) -> Path:
    return Path(run_python("print(_C.nvrtc_info()['path'])").out.strip())


def test_info(run_python: Run) -> None:
    info = eval(run_python("print(_C.nvrtc_info())").out)
    assert info["version"] >= (12, 0)
    assert 90 in info["archs"]


def test_none_found(run_python: Run, tmp_path: Path) -> None:
    script = "print(*fails(_C.nvrtc_info)[1:])"
    text = run_python(script, DG_NVRTC_PATH=tmp_path / "libnvrtc.so.13").out
    assert text.startswith(
        "compile no NVRTC found: got none of the places below, expected libnvrtc 12.0 or newer"
    )
    assert "install the wheel nvidia-cuda-nvrtc" in text
    assert f"{tmp_path}/libnvrtc.so.13 (" in text
    assert f"{tmp_path}/libnvrtc.so* (no such file)" in run_python(script, DG_NVRTC_PATH=tmp_path).out


def test_path_may_be_a_file_or_a_folder(run_python: Run, nvrtc_path: Path) -> None:
    for path in (nvrtc_path, nvrtc_path.parent):
        assert run_python("print(_C.nvrtc_info()['path'])", DG_NVRTC_PATH=path).out.strip() == str(nvrtc_path)


@pytest.mark.parametrize("layout", ["cu13", "cuda_nvrtc"])
def test_the_wheel_comes_before_the_toolkit(
    run_python: Run, nvrtc_path: Path, tmp_path: Path, layout: str
) -> None:
    library = tmp_path / "site-packages" / "nvidia" / layout / "lib"
    library.mkdir(parents=True)
    for file in nvrtc_path.parent.glob("libnvrtc*.so*"):
        (library / file.name).symlink_to(file)
    script = f"_C.set_nvrtc_wheel_folders(['/nowhere', {str(library.parents[2])!r}])\n"
    assert run_python("print(_C.nvrtc_info()['path'])").out == f"{nvrtc_path}\n"
    assert run_python(script + "print(_C.nvrtc_info()['path'])").out.startswith(str(library))
    assert run_python(script + "print(_C.build(source()).origin)").out == "compiled\n"
    assert run_python(script + "print(_C.build(source()).origin)").out == "disk\n"


def test_site_packages_are_searched(run_python: Run, nvrtc_path: Path, tmp_path: Path) -> None:
    library = tmp_path / "site-packages" / "nvidia" / "cu13" / "lib"
    library.parent.mkdir(parents=True)
    library.symlink_to(nvrtc_path.parent)
    path = os.pathsep.join([str(library.parents[2]), os.environ.get("PYTHONPATH", "")])
    assert run_python("print(_C.nvrtc_info()['path'])", PYTHONPATH=path).out.startswith(str(library))


def test_too_old(run_python: Run, compiler: str, tmp_path: Path) -> None:
    (tmp_path / "old.cpp").write_text(OLD)
    library = tmp_path / "libnvrtc.so.11"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(tmp_path / "old.cpp")], check=True)
    text = run_python("print(fails(_C.nvrtc_info)[2])", DG_NVRTC_PATH=tmp_path).out
    assert f"{library} (version 11.8, expected 12.0 or newer)" in text


def test_not_nvrtc_at_all(run_python: Run, fake_libcuda: Path) -> None:
    text = run_python("print(fails(_C.nvrtc_info)[2])", DG_NVRTC_PATH=fake_libcuda).out
    assert "lacks an entry point" in text


def test_unknown_architecture(run_python: Run) -> None:
    text = run_python("print(fails(_C.build, source(), arch='77a')[2])").out
    assert "cannot build for sm_77a" in text
    assert "install a newer nvidia-cuda-nvrtc" in text


def test_device_headers_come_from_memory(run_python: Run) -> None:
    script = """
headers = _C.device_headers()
assert list(headers) == sorted(headers) and "deep_gemm/spec/types.h" in headers
code = '#include <deep_gemm/spec/gemm.h>\\n__global__ void k(unsigned* p) { *p = sizeof(deep_gemm::GemmParams); }'
print(_C.compile(code, ["k"], arch="90a", kind="ptx").image.decode().count(".entry"))
"""
    assert run_python(script).out == "1\n"
