"""Bundles from problems to operations: written where there is a compiler, used where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import deep_gemm

Run = Callable[..., Any]

CALL = """
import ml_dtypes, numpy as np
import deep_gemm
rng = np.random.default_rng(0)
a, b = (rng.integers(-4, 5, shape).astype(ml_dtypes.float8_e4m3fn) for shape in ((1, 256), (256, 256)))
d = np.full((1, 256), np.nan, np.float32)
def call():
    deep_gemm.fp8_gemm_nt((a, np.ones((1, 2), np.float32)), (b, np.ones((2, 2), np.float32)), d, device="emulator:sm_90a")
    return bool((d == a.astype(np.float32) @ b.astype(np.float32).T).all())
"""
PROBLEM = "gemm m=1 n=256 k=256 d=fp32"


def test_an_operation_runs_from_a_bundle_without_a_compiler(
    run_python: Run, cache: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "kernels.bundle"
    calls: list[tuple[int, int, str]] = []
    count = deep_gemm.write_bundle(
        bundle, [PROBLEM, PROBLEM], device="emulator:sm_90a", progress=lambda *call: calls.append(call)
    )
    assert count == len(set(deep_gemm.enumerate_specs(PROBLEM, "emulator:sm_90a"))) == len(calls)
    without = {"DG_NVRTC_PATH": "/nowhere"}
    opened = f"from pathlib import Path\nprint(deep_gemm.open_bundle(Path({str(bundle)!r})), call())"
    assert run_python(CALL + opened, **without).out == f"{count} True\n"
    assert run_python(CALL + "print(call())", DG_JIT_BUNDLES=bundle, **without).out == "True\n"
    assert "compile" in run_python(CALL + "print(fails(call)[1])", **without).out
    assert not cache.exists()


def test_a_bundle_for_a_gpu_that_is_not_here(run_python: Run, fake_libcuda: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "kernels.bundle"
    script = f"""
import deep_gemm
print(deep_gemm.write_bundle({str(bundle)!r}, [{PROBLEM!r}], device="90a:132"))
"""
    count = int(run_python(script).out)
    use = f"""
import deep_gemm
deep_gemm.open_bundle({str(bundle)!r})
device = _C.Device("cuda")
specs = set(deep_gemm.enumerate_specs({PROBLEM!r}, device))
print(len(specs), {{_C.load_kernel(device, _C.kernel_source(spec))[1] for spec in specs}})
"""
    out = run_python(use, DG_LIBCUDA_PATH=fake_libcuda, DG_NVRTC_PATH="/nowhere").out
    assert out == f"{count} {{'bundle'}}\n"


def test_what_is_no_list_of_problems_or_no_path(tmp_path: Path) -> None:
    with pytest.raises(
        TypeError, match=r"problems is the str 'gemm .*', expected a sequence .*; put it in a list"
    ):
        deep_gemm.write_bundle(tmp_path / "b", PROBLEM)
    with pytest.raises(ValueError, match="got no problems, expected at least one"):
        deep_gemm.write_bundle(tmp_path / "b", [])
    with pytest.raises(
        ValueError, match=r"write_bundle: '.*' is in no folder that exists; make '.*new' first"
    ):
        deep_gemm.write_bundle(tmp_path / "new" / "b", [PROBLEM], device="90a:132")
    with pytest.raises(
        TypeError, match=r"write_bundle: path is 3 of type int, expected a str or a pathlib\.Path; pass"
    ):
        deep_gemm.write_bundle(3, [PROBLEM], device="90a:132")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="open_bundle: path is 3 of type int"):
        deep_gemm.open_bundle(3)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_bundle(run_python: Run, cache: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "sub" / "kernels.bundle"
    bundle.parent.mkdir()
    run_python(f"_C.write_bundle({str(bundle)!r}, [source(i) for i in range(3)])")
    assert [file.name for file in bundle.parent.iterdir()] == ["kernels.bundle"]
    shutil.rmtree(cache)
    script = """
a = _C.build(source(1))
print(a.origin, a.lowered_name, a.stats["registers"] > 0, len(a.image) > 1000)
print(fails(_C.build, source(7))[1])
"""
    expected = ["bundle _Z5probePf True True", "compile"]
    opened = f"print(_C.open_bundle({str(bundle)!r}))"
    without = {"DG_NVRTC_PATH": "/nowhere"}
    assert run_python(opened + script, **without).lines == ["3", *expected]
    assert run_python(script, DG_JIT_BUNDLES=f"/missing:{bundle}", **without).lines == expected
    assert not cache.exists() or not list((cache / "kernels").glob("*"))


def test_damaged_bundles(run_python: Run, tmp_path: Path) -> None:
    bundle = tmp_path / "kernels.bundle"
    run_python(f"_C.write_bundle({str(bundle)!r}, [source(0)])")
    content = bundle.read_bytes()
    opened = f"print(fails(_C.open_bundle, {str(bundle)!r})[1:])"
    for damaged in (b"", b"not a bundle" * 20, content[:40], content[:100] + b"!" + content[101:]):
        bundle.write_bytes(damaged)
        kind, message = eval(run_python(opened).out)
        assert kind == "io"
        assert "write it again" in message
    bundle.write_bytes(content[:-1])  # the index is sound, an image is not
    done = run_python(f"_C.open_bundle({str(bundle)!r}); print(_C.build(source(0)).origin)")
    assert done.out == "disk\n"
    assert "is damaged; it is looked for elsewhere" in done.err
