"""Negative controls with kernels: one that breaks a rule of exact speculation in the way that has happened to others takes
the right one's place in the cache, and comparing sessions step by step must notice it.

The rules: a sum's order does not follow the number of rows (neither of a reduction nor of additions as they arrive), each
row has its own maximum, and what is taken back is the state after the last accepted row.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from emulator.injection import flatten
from runtime.checkpoints import write_random_v4

from deep_gemm import _C

DEVICE = "emulator:sm_90a,sms=8"
# The kernels that are broken, with the formats that a session of exact numerics gives them.
CALLS = f"""
import numpy as np
from deep_gemm import _C, ops
device, f = _C.Device({DEVICE!r}), lambda *shape: np.zeros(shape, np.float32)
ids = np.zeros((3, 2), np.int32)
ops.project(f(3, 32), f(8, 32), f(3, 8), device=device)
ops.expert_down(f(3, 2, 32), f(4, 8, 32), f(3, 8), experts=ids, add=f(3, 8), device=device)
ops.argmax(f(3, 64), ids[:, 0].copy(), device=device)
ops.compressor_restore(f(3, 9, 32), ids[0, :1].copy(), f(1, 9, 32), device=device)
"""
# Every other step has right drafts, the others one right draft and a wrong one.
STEPS = f"""
import sys
from deep_gemm import Engine
from deep_gemm.runtime.verify import compare
engine = Engine(sys.argv[1], device={DEVICE!r}, numerics="exact", context=64, max_rows=16)
prompt = [0, 9, 33, 20, 21]
plain, session = engine.session(window=1), engine.session(window=3)
for one in (plain, session):
    one.sync(prompt)
text = [token for step in plain.generate(16, eos=-1) for token in step.tokens]
plain.sync(prompt)
found = None
while found is None and (at := len(session.tokens) - len(prompt)) < 12:
    right = text[at + 1 : at + 3]
    session.force_drafts(right if at % 2 else [right[0], (right[1] + 1) % 64])
    for _ in session.step().tokens:
        plain.step(1)
    found = compare(session, plain)
print(found)
"""


@dataclass(frozen=True)
class Breakage:
    """What a kernel does wrong, and the words that must be part of the verdict."""

    kernel: str
    old: str
    new: str
    noticed: tuple[str, ...]


BREAKAGES = {
    "a tree that follows the number of rows": Breakage(
        "project",
        "for (u32 i = 0; i < Rows; ++i) sums[i] = warp_sum(sums[i]);",
        """for (u32 i = 0; i < Rows; ++i) {
            float total = 0;
            for (u32 lane = 0; lane < 32; ++lane) total += __shfl_sync(0xffffffffu, sums[i], lane);
            sums[i] = Rows == 1 ? warp_sum(sums[i]) : total;
        }""",
        ("layers.", "hidden", "logits"),
    ),
    "sums in the order of arrival": Breakage(
        "expert_down",
        "for (u32 j = 0; j < p.slots; ++j) {",
        "for (u32 turn = 0; turn < p.slots; ++turn) {\n        const u32 j = (turn + row) % p.slots;",
        ("layers.", "hidden", "logits"),
    ),
    "the first row's maximum for all": Breakage(
        "argmax",
        "first = rank * kArgmaxThreads + ptx::thread_index();\n    const float* logits = p.logits + row * p.stride;",
        "first = rank * kArgmaxThreads + ptx::thread_index();\n    const float* logits = p.logits;",
        ("token",),
    ),
    "snapshots swapped": Breakage(
        "compressor_restore",
        "const u32 row = static_cast<u32>(ptx::ld_global_s32(p.row));",
        "const u32 row = static_cast<u32>(ptx::ld_global_s32(p.row)) ^ 1;",
        ("frontier",),
    ),
}


def run(script: str, cache: Path, *arguments: str | Path) -> str:
    """Other kernels than those in `cache` come from where the tests keep theirs."""
    usual = os.environ.get("DG_JIT_CACHE_DIR") or str(
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deep_gemm"
    )
    environment = {
        **os.environ,
        "DG_JIT_CACHE_DIR": str(cache),
        "DG_JIT_READONLY_CACHE_DIRS": usual if arguments else "",
    }
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the kernels of CALLS."""
    cache = tmp_path_factory.mktemp("built")
    run(CALLS, cache)
    return cache


def break_kernel(entry: Path, breakage: Breakage) -> None:
    """Replaces the image of a cache entry by that of the broken source, and its record accordingly."""
    lines = (entry / "record.txt").read_text().splitlines()
    fields = dict(line.partition(" ")[::2] for line in lines)
    source = flatten((entry / "kernel.cu").read_text())
    assert source.count(breakage.old) == 1, breakage.old
    compiled = _C.compile(
        source.replace(breakage.old, breakage.new), [fields["entry"]], arch="90a", kind="ptx"
    )
    assert compiled.lowered_names == [fields["lowered"]]
    (entry / "image").write_bytes(compiled.image)
    fields |= {"image_bytes": str(len(compiled.image)), "image_hash": _C.hash_hex(compiled.image)}
    text = "".join(f"{name} {value}\n" for name, value in fields.items() if name != "checksum")
    (entry / "record.txt").write_text(f"{text}checksum {_C.hash_hex(text.encode())}\n")


@pytest.mark.parametrize("name", BREAKAGES)
def test_a_broken_kernel_is_noticed(built: Path, tmp_path: Path, name: str) -> None:
    breakage = BREAKAGES[name]
    (entry,) = (built / "kernels").glob(f"{breakage.kernel}-*/nvrtc-*")
    cache = tmp_path / "cache"
    shutil.copytree(entry, copied := cache / entry.relative_to(built))
    break_kernel(copied, breakage)
    folder = write_random_v4(tmp_path / "model", compress_ratios=[4, 8, 0])
    verdict = run(STEPS, cache, folder)
    assert any(word in verdict for word in breakage.noticed), verdict


def test_right_kernels_pass(built: Path, tmp_path: Path) -> None:
    folder = write_random_v4(tmp_path / "model", compress_ratios=[4, 8, 0])
    assert run(STEPS, built, folder) == "None"
