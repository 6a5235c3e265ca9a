"""Checks the layering of device and host code against the one table below.

Include only from the left: a file may include headers of its own folder and of the folders its row names.
Includes are always `<deep_gemm/...>` (device and shared code) or `"folder/..."` (host code), never relative.
CUDA built-ins, inline asm and __CUDA_ARCH__ live in ptx/ only; the standard library lives in csrc/ only.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

DEVICE_ROOT = Path("deep_gemm_include/deep_gemm")
HOST_ROOT = Path("csrc")

# folder -> the other folders it may include
DEVICE = {
    "spec": set[str](),
    "ptx": {"spec"},
    "tile": {"spec", "ptx"},
    "pipe": {"spec", "ptx", "tile"},
    "sched": {"spec", "ptx", "tile"},
    "kernel": {"spec", "ptx", "tile", "pipe", "sched"},
}
# Every host folder may also include the shared contract, spec/.
HOST = {
    "base": set[str](),
    "driver": {"base"},
    "emulator": {"base", "driver"},
    "jit": {"base", "driver"},
    "plan": {"base"},
    "op": {"base", "driver", "emulator", "jit", "plan"},
    "runtime": {"base", "driver", "op"},
    "python": {"base", "driver", "emulator", "jit", "plan", "op", "runtime"},
}

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"')
BUILTIN = re.compile(
    r"\basm\b|\b(?:threadIdx|blockIdx|blockDim|gridDim|warpSize)\b|\b__(?:shared|constant)__\b"
    r"|\b__(?:shfl|ballot|any|all|activemask|syncthreads|syncwarp|threadfence|nanosleep|cvta|ldg|trap)\w*"
)
ARCH = re.compile(r"\b__CUDA_ARCH\w*")
STD = re.compile(r"\bstd::")


def without_comments(text: str) -> str:
    """The text with comments blanked, line numbers kept."""
    return COMMENT.sub(lambda match: re.sub(r"[^\n]", " ", match.group(0)), text)


def line_of(text: str, offset: int) -> int:
    return text.count("\n", 0, offset) + 1


def outside(layer: str, target: str, allowed: set[str]) -> str:
    return f"{layer}/ includes {target}: it may include {', '.join(sorted(allowed)) or 'nothing else'}"


def include_problem(layer: str, host: bool, quote: str, target: str) -> str | None:
    """Why this include is not allowed, or None."""
    if ".." in Path(target).parts:
        return f"include of {target}: relative paths are not allowed, name the folder"
    folder = target.split("/")[0]
    if quote == '"':
        if not host:
            return f'include of "{target}": device code includes <deep_gemm/...> only'
        if folder not in HOST:
            return f'include of "{target}": expected "<folder>/..." with a folder of csrc/'
        if folder != layer and folder not in HOST[layer]:
            return outside(layer, target, HOST[layer])
        return None
    if target.startswith("deep_gemm/"):
        folder = target.split("/")[1]
        if host:
            return None if folder == "spec" else f"host code includes <{target}>: only spec/ is shared"
        if folder not in DEVICE:
            return f"include of <{target}>: expected a folder of {', '.join(DEVICE)}"
        if folder != layer and folder not in DEVICE[layer]:
            return outside(layer, target, DEVICE[layer])
        return None
    return None if host else f"include of <{target}>: device code has no other headers"


def problems_in(path: Path, text: str, layer: str, host: bool) -> Iterator[tuple[int, str]]:
    """(line, sentence) for each rule this file breaks."""
    bare = without_comments(text)
    for match in INCLUDE.finditer(bare):
        problem = include_problem(layer, host, match.group(1), match.group(2))
        if problem:
            yield line_of(bare, match.start(1)), problem
    code = STRING.sub(lambda match: '"' + " " * (len(match.group(0)) - 2) + '"', bare)
    if not host:
        rules = [(STD, "the standard library in device code")]
        if layer != "ptx":
            rules += [(BUILTIN, "a CUDA built-in or asm outside ptx/"), (ARCH, "__CUDA_ARCH__ outside ptx/")]
        for pattern, sentence in rules:
            for match in pattern.finditer(code):
                yield line_of(code, match.start()), f"{match.group(0)}: {sentence}"


def check(top: Path) -> list[str]:
    """Every broken rule under `top`, as `path:line: sentence`."""
    found: list[str] = []
    for root, table, host in ((DEVICE_ROOT, DEVICE, False), (HOST_ROOT, HOST, True)):
        for path in sorted((top / root).rglob("*")):
            if path.suffix not in {".h", ".cuh", ".cpp", ".inc"}:
                continue
            layer = path.relative_to(top / root).parts[0]
            name = path.relative_to(top).as_posix()
            if layer not in table:
                found.append(f"{name}:1: {layer}/ is not a layer; add its row to tools/check_layers.py")
                continue
            text = path.read_text(encoding="utf-8")
            found += [f"{name}:{line}: {why}" for line, why in problems_in(path, text, layer, host)]
    return found


def main() -> int:
    found = check(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
    print("\n".join(found) if found else "layers: every include points to the left")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
