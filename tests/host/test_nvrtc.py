"""Where NVRTC is looked for, and what is said when it is not there, too old or too small for an architecture."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]

FAKE = """
#include <cstdio>
#include <cstdlib>
#include <unistd.h>
extern "C" {
int nvrtcVersion(int* major, int* minor) {
    if (const char* started = std::getenv("FAKE_SLOW")) std::fclose(std::fopen(started, "w")), sleep(2);
    *major = MAJOR; *minor = 8; return 0;
}
int nvrtcGetNumSupportedArchs(int* n) { *n = 0; return 0; }
int nvrtcGetSupportedArchs(int*) { return 0; }
const char* nvrtcGetErrorString(int) { return "?"; }
#define NONE(name) int name() { return 1; }
NONE(nvrtcCreateProgram) NONE(nvrtcDestroyProgram) NONE(nvrtcAddNameExpression) NONE(nvrtcCompileProgram)
NONE(nvrtcGetLoweredName) NONE(nvrtcGetProgramLogSize) NONE(nvrtcGetProgramLog) NONE(nvrtcGetCUBINSize)
NONE(nvrtcGetCUBIN) NONE(nvrtcGetPTXSize) NONE(nvrtcGetPTX)
}
"""


def make_fake(compiler: str, folder: Path, major: int) -> Path:
    """An NVRTC that knows its version and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "fake.cpp").write_text(FAKE)
    library = folder / f"libnvrtc.so.{major}"
    command = [compiler, f"-DMAJOR={major}", "-shared", "-fPIC", "-o", str(library), str(folder / "fake.cpp")]
    subprocess.run(command, check=True)
    (folder / f"libnvrtc-builtins.so.{major}.8").touch()
    return library


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


NO_WHEELS = "_C.set_nvrtc_wheel_folders([])\n"


@pytest.mark.parametrize("variable", ["CUDA_HOME", "CUDA_PATH"])
@pytest.mark.parametrize("folder", ["lib64", "lib", "targets/x86_64-linux/lib"])
def test_without_a_wheel_a_toolkit_serves(
    run_python: Run, compiler: str, tmp_path: Path, variable: str, folder: str
) -> None:
    library = make_fake(compiler, tmp_path / folder, 13)
    homes = {"CUDA_HOME": "", "CUDA_PATH": "", variable: tmp_path}
    assert run_python(NO_WHEELS + "print(_C.nvrtc_info()['path'])", **homes).out == f"{library}\n"


def test_the_loaders_own_search(run_python: Run, compiler: str, tmp_path: Path) -> None:
    """A name without a folder is the loader's to find; without a toolkit that is the last resort, too."""
    library = make_fake(compiler, tmp_path, 13)
    script = NO_WHEELS + "print(_C.nvrtc_info()['path'])"
    named = {"DG_NVRTC_PATH": library.name} if Path("/usr/local/cuda").exists() else {}
    out = run_python(script, LD_LIBRARY_PATH=tmp_path, CUDA_HOME="", CUDA_PATH="", **named).out
    assert Path(out.strip()).name == library.name and "nvidia" not in out


def test_too_old(run_python: Run, compiler: str, tmp_path: Path) -> None:
    library = make_fake(compiler, tmp_path, 11)
    text = run_python("print(fails(_C.nvrtc_info)[2])", DG_NVRTC_PATH=tmp_path).out
    assert f"{library} (version 11.8, expected 12.0 or newer)" in text


def test_a_child_forked_while_another_thread_searches(run_python: Run, compiler: str, tmp_path: Path) -> None:
    make_fake(compiler, tmp_path, 13)
    script = """
import signal, threading
threading.Thread(target=_C.nvrtc_info, daemon=True).start()
while not os.path.exists(os.environ["FAKE_SLOW"]): time.sleep(0.001)
child = os.fork()
if child == 0:
    signal.alarm(20)  # ends it where it waits for the thread that it does not have
    del os.environ["FAKE_SLOW"]
    os._exit(_C.nvrtc_info()["version"][0])
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run_python(script, DG_NVRTC_PATH=tmp_path, FAKE_SLOW=tmp_path / "started").out == "13\n"


@pytest.fixture
def two_wheels(compiler: str, tmp_path: Path) -> tuple[str, Path, Path]:
    """The script that names site-packages with CUDA 13's NVRTC, looked at first, and CUDA 12's."""
    site = tmp_path / "site-packages"
    newer = make_fake(compiler, site / "nvidia" / "cu13" / "lib", 13)
    older = make_fake(compiler, site / "nvidia" / "cuda_nvrtc" / "lib", 12)
    return f"_C.set_nvrtc_wheel_folders([{str(site)!r}])\n", newer, older


def test_one_that_fits_the_driver_is_preferred(
    run_python: Run, two_wheels: tuple[str, Path, Path], fake_libcuda: Path
) -> None:
    script, newer, older = two_wheels
    script += "info = _C.nvrtc_info()\nprint(info['path'], info['version'][0], info['remark'], sep='|')"

    def chosen(version: str) -> str:
        return run_python(script, DG_LIBCUDA_PATH=fake_libcuda, FAKE_VERSION=version).out

    remark = f"chosen because NVRTC 13.8 ({newer}) is newer than the driver, for CUDA 12.4"
    assert chosen("12040") == f"{older}|12|{remark}\n"
    assert chosen("13000") == f"{newer}|13|\n"  # the same major: a newer minor is fine
    assert run_python(script, DG_LIBCUDA_PATH="/nowhere").out == f"{newer}|13|\n"


def test_none_fits_the_driver(run_python: Run, nvrtc_path: Path, fake_libcuda: Path) -> None:
    """The compiler still serves the emulated GPU; a GPU's error names the one thing to do."""
    old = {"DG_LIBCUDA_PATH": fake_libcuda, "FAKE_VERSION": "12040"}
    script = """
print(_C.nvrtc_info()["remark"])
print(_C.build(source(), kind="ptx").origin)
"""
    if run_python("print(_C.nvrtc_info()['version'][0])").out != "13\n":
        pytest.skip("needs an NVRTC newer than the oldest driver")
    remedy = (
        "install the wheel nvidia-cuda-nvrtc-cu12, or point DG_NVRTC_PATH at the libnvrtc of a CUDA toolkit"
    )
    remark, origin = run_python(script, **old).lines
    assert (
        f"({nvrtc_path}) is newer than the driver, for CUDA 12.4, which loads none of its kernels; {remedy}"
        in remark
    )
    assert origin == "compiled"
    load = "print(fails(_C.load_kernel, _C.Device('cuda'), source())[2])"
    text = run_python(load, FAKE_FAIL="cuModuleLoadDataEx", FAKE_CODE="200", **old).out
    assert f"and the driver loads images of CUDA 12 and older: {remedy}, or update the driver" in text
    chosen = run_python("print(_C.nvrtc_info()['remark'])", DG_NVRTC_PATH=nvrtc_path, **old).out
    assert (
        f"correct DG_NVRTC_PATH ({nvrtc_path}), or unset it and install the wheel nvidia-cuda-nvrtc-cu12"
        in chosen
    )


def test_the_version_told_by_file_names_is_the_one_chosen(
    run_python: Run, two_wheels: tuple[str, Path, Path], cache: Path, fake_libcuda: Path
) -> None:
    """A cached kernel of the version that fits is found without opening a compiler."""
    run_python("_C.build(source())")
    (entry,) = (cache / "kernels").glob("*/nvrtc-*")
    entry.rename(entry.with_name("nvrtc-12.8"))
    script = (
        two_wheels[0] + "print(_C.build(source()).origin, 'libnvrtc.so' in open('/proc/self/maps').read())"
    )
    assert run_python(script, DG_LIBCUDA_PATH=fake_libcuda, FAKE_VERSION="12040").out == "disk False\n"


def test_not_nvrtc_at_all(run_python: Run, fake_libcuda: Path) -> None:
    text = run_python("print(fails(_C.nvrtc_info)[2])", DG_NVRTC_PATH=fake_libcuda).out
    assert "lacks an entry point" in text


def test_unknown_architecture(run_python: Run) -> None:
    text = run_python("print(fails(_C.build, source(), arch='77a')[2])").out
    assert "cannot build for sm_77a" in text
    assert (
        "install a newer version of the wheel nvidia-cuda-nvrtc, or of a CUDA toolkit (DG_NVRTC_PATH)" in text
    )


def test_device_headers_come_from_memory(run_python: Run) -> None:
    script = """
headers = _C.device_headers()
assert list(headers) == sorted(headers) and "deep_gemm/spec/types.h" in headers
code = '#include <deep_gemm/spec/gemm.h>\\n__global__ void k(unsigned* p) { *p = sizeof(deep_gemm::GemmParams); }'
print(_C.compile(code, ["k"], arch="90a", kind="ptx").image.decode().count(".entry"))
"""
    assert run_python(script).out == "1\n"
