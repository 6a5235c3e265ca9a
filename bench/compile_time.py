"""Where the time of a first call goes inside NVRTC, and which options change it. Needs no GPU and no PyTorch.

    python bench/compile_time.py [REPEATS]

For the kernels that plans choose for a few problems: milliseconds in the front end, NVVM and ptxas by NVRTC's own clock
(best of the repeats), and whether the machine code is byte for byte that of the default options. Only an option that
leaves the code as it is can be taken without timing kernels again.
"""

from __future__ import annotations

import hashlib
import re
import struct
import sys
import tempfile
from pathlib import Path

from deep_gemm import _C

PROBLEMS = ("gemm m=1 n=7168 k=2048", "gemm m=64 n=7168 k=2048", "gemm m=4096 n=7168 k=2048")
DEFAULT = ("--minimal", "--no-cache")
CHOICES: dict[str, tuple[str, ...]] = {
    "default": DEFAULT,
    "not minimal": ("--no-cache",),
    "ptxas -O2": (*DEFAULT, "--ptxas-options=-O2"),
    "ptxas -O1": (*DEFAULT, "--ptxas-options=-O1"),
    "split-compile 0": (*DEFAULT, "--split-compile=0"),
    "Ofast-compile=min": (*DEFAULT, "--Ofast-compile=min"),
    "Ofast-compile=mid": (*DEFAULT, "--Ofast-compile=mid"),
    "no warnings": (*DEFAULT, "--disable-warnings"),
    "pch": (*DEFAULT, "--pch"),
    "Ofast-compile=max": (*DEFAULT, "--Ofast-compile=max"),
}
PHASES = ("CUDA C++ Frontend", "NVVM Optimizer", "PTX Translation")


def code_of(cubin: bytes) -> str:
    """A hash of the executable sections of an ELF file."""
    start, size, count, names = (*struct.unpack_from("<Q", cubin, 40), *struct.unpack_from("<HHH", cubin, 58))
    headers = [struct.unpack_from("<IIQQQQIIQQ", cubin, start + i * size) for i in range(count)]
    name_table = headers[names][4]
    digest = hashlib.sha256()
    for name, _, _, _, offset, length, *_ in headers:
        at = name_table + name
        if cubin[at : cubin.index(b"\0", at)].startswith(b".text"):
            digest.update(cubin[offset : offset + length])
    return digest.hexdigest()[:12]


def phases_of(table: str) -> dict[str, float]:
    rows = [line.split(",") for line in table.splitlines()[1:] if line.strip()]
    return {row[1].strip(): float(row[2]) for row in rows if len(row) >= 4}


def what_ptxas_says(log: str) -> str:
    """Registers, spills, and the codes of lost pipelining."""
    found = re.search(r"Used (\d+) registers", log)
    spills = sum(int(n) for n in re.findall(r"(\d+) bytes spill", log))
    codes = " ".join(sorted(set(re.findall(r"\(C75\d\d\)", log))))
    return f"{found[1] if found else '?'} registers, {spills} bytes spilled {codes}".rstrip()


def compile_once(source: _C.KernelSource, options: tuple[str, ...]) -> tuple[dict[str, float], str, str]:
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "time.csv"
        compiled = _C.compile(
            source.code,
            [source.entry],
            arch="90a",
            kind="cubin",
            options=[*options, "--ptxas-options=-v", f"--time={table}"],
        )
        return phases_of(table.read_text()), code_of(compiled.image), what_ptxas_says(compiled.log)


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    for problem in PROBLEMS:
        spec = _C.plan(problem, "90a:132")["spec"]
        source = _C.kernel_source(spec)
        print(
            f"\n{problem}: {spec}\n  {'options':<36} {'front':>6} {'nvvm':>6} {'ptxas':>6} {'sum':>6}  code"
        )
        same = ""
        for name, options in CHOICES.items():
            try:
                runs = [compile_once(source, options) for _ in range(repeats)]
            except _C.Error as error:
                print(f"  {name:<36} {str(error).splitlines()[-1][:80]}")
                continue
            best = {phase: min(run[0].get(phase, 0) for run in runs) for phase in PHASES}
            code = runs[0][1]
            same = same or code
            columns = " ".join(f"{best[phase]:6.0f}" for phase in PHASES)
            verdict = "same" if code == same else f"other, {runs[0][2]}"
            print(f"  {name:<36} {columns} {sum(best.values()):6.0f}  {verdict}")


if __name__ == "__main__":
    main()
