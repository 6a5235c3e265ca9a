"""tools/check_layers.py finds each kind of broken rule, and the repository itself breaks none."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

TOP = Path(__file__).resolve().parents[2]


def load_checker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_layers", TOP / "tools" / "check_layers.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CHECKER = load_checker()
DEVICE = "deep_gemm_include/deep_gemm/"

GOOD = [
    (DEVICE + "tile/mma.h", "#include <deep_gemm/ptx/wgmma.h>\n// threadIdx in a comment is fine\n"),
    (DEVICE + "ptx/ids.h", '#include <deep_gemm/spec/types.h>\nasm("mov;"); threadIdx.x; __CUDA_ARCH__\n'),
    ("csrc/plan/gemm.cpp", '#include "plan/gemm.h"\n#include <deep_gemm/spec/gemm.h>\nstd::vector<int> x;\n'),
    ("csrc/op/gemm.cpp", '#include "op/api.h"\n#include "jit/cache.h"\n#include "plan/gemm.h"\n'),
]

BAD = [
    (DEVICE + "tile/a.h", "#include <deep_gemm/kernel/sm90_gemm.cuh>\n", "tile/ includes"),
    (DEVICE + "pipe/a.h", "#include <deep_gemm/sched/blocks.h>\n", "pipe/ includes"),
    (DEVICE + "spec/a.h", "#include <type_traits>\n", "no other headers"),
    (DEVICE + "kernel/a.cuh", '#include "tile/mma.h"\n', "device code includes <deep_gemm/...> only"),
    (DEVICE + "kernel/a.cuh", "int x = threadIdx.x;\n", "outside ptx/"),
    (DEVICE + "kernel/a.cuh", 'asm volatile("nop;");\n', "outside ptx/"),
    (DEVICE + "tile/a.h", "#if __CUDA_ARCH__ >= 900\n", "outside ptx/"),
    (DEVICE + "spec/a.h", "std::min(1, 2);\n", "standard library"),
    (DEVICE + "extra/a.h", "\n", "not a layer"),
    ("csrc/base/a.h", '#include "driver/device.h"\n', "base/ includes"),
    ("csrc/plan/a.h", '#include "driver/device.h"\n', "plan/ includes"),
    ("csrc/jit/a.h", '#include "plan/gemm.h"\n', "jit/ includes"),
    ("csrc/driver/a.cpp", '#include "emulator/x.h"\n', "driver/ includes"),
    ("csrc/runtime/a.cpp", '#include "jit/cache.h"\n', "runtime/ includes"),
    ("csrc/jit/a.cpp", '#include "../base/error.h"\n', "relative"),
    ("csrc/jit/a.cpp", "#include <deep_gemm/ptx/ids.h>\n", "only spec/ is shared"),
]


def write(top: Path, name: str, text: str) -> None:
    (top / name).parent.mkdir(parents=True, exist_ok=True)
    (top / name).write_text(text)


@pytest.mark.parametrize(("name", "text"), GOOD)
def test_allowed(tmp_path: Path, name: str, text: str) -> None:
    write(tmp_path, name, text)
    assert CHECKER.check(tmp_path) == []


@pytest.mark.parametrize(("name", "text", "sentence"), BAD)
def test_broken_rule_is_named_with_its_line(tmp_path: Path, name: str, text: str, sentence: str) -> None:
    write(tmp_path, name, "// one line before\n" + text)
    found = CHECKER.check(tmp_path)
    assert len(found) == 1, found
    line = 1 if sentence == "not a layer" else 2
    assert found[0].startswith(f"{name}:{line}: ") and sentence in found[0]


def test_the_repository_keeps_its_layers() -> None:
    assert CHECKER.check(TOP) == []
