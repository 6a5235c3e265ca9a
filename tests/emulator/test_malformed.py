"""PTX that is not what NVRTC writes: an error at load that quotes the line, never a crash. Mutants of a shipped kernel are
loaded and, where that works, launched; each ends in a result or in an error of the emulator.
"""

from __future__ import annotations

import random
import re
from dataclasses import replace

import pytest
from emulator.gemm_launch import BF16_DENSE, Gemm

from deep_gemm import _C

SMALL = replace(BF16_DENSE, m=64, n=64, k=128)
TEXT = """
.version 8.0
.target sm_90a
.address_size 64
.visible .entry kernel(.param .u64 x) {{
    .reg .pred %p<4>;
    .reg .b32 %r<8>;
    .reg .f32 %f<8>;
    .reg .b64 %rd<4>;
    .shared .align 16 .b8 s[64];
L:
    {line}
    ret;
}}
"""
BAD_LINES = {
    "bra;": "got 0 operands, expected 1",
    "bra %r1;": "an indirect branch",
    "add.s32 %r1, %r2;": "got 2 operands, expected 3",
    "add.s32 %r1, %r2, %r3, %r4;": "got 4 operands, expected 3",
    "add.s32 %p1, %r2, %r3;": "register %p1 is a predicate, the type needs 4 bytes",
    "add.s32 %r1, %p2, %r3;": "register %p2 is a predicate, the type needs 4 bytes",
    "add.s64 %r1, %rd1, %rd2;": "register %r1 holds 4 bytes, the type needs 8",
    "mul.wide.u32 %r1, %r2, %r3;": "register %r1 holds 4 bytes, the type needs 8",
    "setp.eq.s32 %r1, %r2, %r3;": "operand is no predicate",
    "@%r1 mov.b32 %r2, %r3;": "the guard is no predicate",
    "mov.b64 %rd1, {};": "the number of elements",
    "ld.shared.v4.u32 {%r1, %r2}, [s];": "the number of elements",
    "ld.param.u32 %r1, x;": "operand is no [address]",
    "ld.param.u32 %r1, [x+8];": "a parameter access is out of bounds",
    "ld.param.u32 %r1, [x-8];": "a parameter access is out of bounds",
    "ld.shared.u32 %r1, [L];": "inside an operand",
    "brx.idx %r1, L;": "brx needs a label of .branchtargets",
    "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3;": "operand 0 is missing",
    "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%rd1, {%r1}], [s];": "the number of coordinates",
    "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r1, %r2}, [s];": "the number of registers",
    "frobnicate.b32 %r1, %r2;": "unknown opcode",
    "mov.b32 %r1, %r2;": "reads a register that nothing writes",
    "@%p1 mov.b32 %r1, 0;": "reads a register that nothing writes",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_the_line_is_quoted(line: str) -> None:
    device = _C.Device("emulator:sm_90a")
    with pytest.raises(_C.Error, match=r"PTX line 12: ") as caught:
        device.load_module(TEXT.format(line=line).encode(), "malformed").kernel("kernel")
    text = str(caught.value)
    assert BAD_LINES[line] in text and (line in text or "inside an operand" in text), text


def mutated(lines: list[str], rng: random.Random) -> str:
    """One or two changes: a line or an operand goes, comes twice, or takes the place of another."""
    lines = list(lines)
    for _ in range(rng.randint(1, 2)):
        at = rng.randrange(len(lines))
        words = re.split(r"([,;{}\[\]\s])", lines[at])
        used = [i for i, word in enumerate(words) if word.strip()]
        match rng.randrange(6):
            case 0:
                del lines[at]
            case 1:
                lines.insert(at, rng.choice(lines))
            case 2 if used:
                del words[rng.choice(used)]
                lines[at] = "".join(words)
            case 3 if used:
                other = [word for word in re.split(r"[,;\s]", rng.choice(lines)) if word]
                words[rng.choice(used)] = rng.choice(other or ["_"])
                lines[at] = "".join(words)
            case 4 if used:
                words[rng.choice(used)] = rng.choice(
                    ["%p1", "%r1", "%rd1", "%f1", "0", "-1", "{}", "[%r1]", "{%r1, %r2}", "$L__BB0_3"]
                )
                lines[at] = "".join(words)
            case _:
                lines[at] = re.sub(
                    r"\.[a-z]\w*",
                    lambda m: rng.choice(["", m[0], ".b64", ".u8", ".pred"]),
                    lines[at],
                    count=1,
                )
    return "\n".join(lines)


def run_mutants(gemm: Gemm, number: int, seed: int) -> dict[str, int]:
    """How many were refused at load, ended in a fault, and ran to their end."""
    rng = random.Random(seed)
    launch = gemm.launch()
    compiled = _C.compile(gemm.source(), [launch.entry], arch="90a", kind="ptx")
    text = compiled.image.decode()
    begin = text.index("{", text.index(".entry"))
    lines = [line for line in text[begin:].split("\n") if line.strip() and "//" not in line]
    device = _C.Device("emulator:sm_90a", steps=3000, threads=1)
    addresses = {name: device.allocate(array.nbytes) for name, array in launch.arrays.items()}
    params = launch.pack(device, addresses)
    # Nothing may be touched, so that a mutant's loops end soon.
    for address in addresses.values():
        device.release(address)
    counts = {"refused": 0, "fault": 0, "ran": 0}
    for _ in range(number):
        image = (text[:begin] + mutated(lines, rng)).encode()
        try:
            kernel = device.load_module(image, "mutant").kernel(compiled.lowered_names[0])
        except _C.Error as error:
            assert error.kind == "emulator" and re.search(r"PTX line \d+: ", str(error)), error
            counts["refused"] += 1
            continue
        try:
            device.launch(kernel, params, grid=launch.grid, block=launch.block, smem_bytes=launch.smem_bytes)
            counts["ran"] += 1
        except _C.Error:
            counts["fault"] += 1
    return counts


def test_mutants_of_a_kernel() -> None:
    counts = run_mutants(SMALL, 600, seed=0)
    assert counts["refused"] > 60 and counts["fault"] > 60, counts
