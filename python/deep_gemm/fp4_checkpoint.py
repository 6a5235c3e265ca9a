"""The FP4 matrices of a checkpoint on disk -> packed weights, layer by layer, with progress and a report."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deep_gemm import _C
from deep_gemm.fp4 import pack_fp4_weights
from deep_gemm.fp4_formats import importers
from deep_gemm.paths import path_text

# What holds the codes and how it ends, what else belongs to the matrix, and which importer reads them.
LAYOUTS: tuple[tuple[str, str, tuple[str, ...], Callable[..., Any]], ...] = (
    ("I8", ".weight", (".scale",), importers.from_deepseek),
    ("U8", ".weight", (".weight_scale", ".weight_scale_2"), importers.from_nvfp4),
    (
        "U8",
        ".weight_packed",
        (".weight_scale", ".weight_global_scale"),
        lambda *parts: importers.from_nvfp4(*parts, reciprocal=True),
    ),
    ("MXFP4", ".weight", (), importers.from_gguf_mxfp4),
)
FORMS = ("mx_e4m3", "mx_e5m2", "nv_single", "nv_exact")
GATE_UP = (("w1", "w3", "w13"), ("gate_proj", "up_proj", "gate_up_proj"))
EXPERT = re.compile(r"(.*\bexperts\.)(\d+)(\..*)")


@dataclass(frozen=True)
class Fp4Layer:
    """Matrices that are packed as one object: those of all experts, of gate and up one below the other."""

    name: str
    members: tuple[tuple[str, ...], ...]  # matrices of each expert
    importer: Callable[..., Any]
    suffixes: tuple[str, ...]
    num_bytes: int


@dataclass
class Fp4Report:
    """What packing found, added up over layers; see Fp4Weights.report."""

    layers: int = 0
    stored_bytes: int = 0
    packed_bytes: int = 0
    rows: int = 0
    rows_beyond: int = 0  # of which the form packed does not hold all scales in one run
    extra_runs: int = 0
    widest: int = 0
    worst_error: float = 0.0

    def add(self, layer: Fp4Layer, weights: _C.Fp4Weights) -> None:
        """Counts one packed layer."""
        one = weights.report
        window = {"mx_e4m3": "rows_beyond_e4m3", "mx_e5m2": "rows_beyond_e5m2"}
        self.layers += 1
        self.stored_bytes += layer.num_bytes
        tensors = (weights.blobs, weights.row_scales, weights.runs)
        self.packed_bytes += sum(int(x.nbytes) for x in tensors if x is not None)
        self.rows += one["rows"]
        self.rows_beyond += one[window.get(weights.form, "rows_beyond_window")]
        self.extra_runs += one["extra_runs"]
        self.widest = max(self.widest, one["widest"])
        self.worst_error = max(self.worst_error, one.get("worst_error", 0.0))


def _matrices(
    tensors: dict[str, dict[str, Any]],
) -> Iterator[tuple[str, Callable[..., Any], tuple[str, ...]]]:
    for name, tensor in tensors.items():
        for dtype, ending, others, importer in LAYOUTS:
            base = name.removesuffix(ending)
            if tensor["dtype"] == dtype and base != name and all(base + other in tensors for other in others):
                yield base, importer, (ending, *others)
                break


def _check_complete(tensors: dict[str, dict[str, Any]], found: set[str]) -> None:
    """No codes without their scales: some of them are there, or other experts of the layout have theirs."""
    layouts = {
        layout[:2]
        for layout in LAYOUTS
        for base in found
        if EXPERT.fullmatch(base) and tensors.get(base + layout[1], {}).get("dtype") == layout[0]
    }
    for name, tensor in tensors.items():
        for dtype, ending, others, _ in LAYOUTS:
            base = name.removesuffix(ending)
            if tensor["dtype"] != dtype or base == name or base in found:
                continue
            missing = [base + other for other in others if base + other not in tensors]
            known = (dtype, ending) in layouts and EXPERT.fullmatch(base)
            if missing and (len(missing) < len(others) or known):
                raise ValueError(
                    f"{name}: got no {' and no '.join(missing)}, expected it beside the codes; the checkpoint is "
                    "incomplete, read all of its files"
                )


def _check_experts(experts: dict[str, dict[int, str]]) -> None:
    """The matrices of a layer's experts are of the same experts."""
    layers: dict[str, str] = {}
    for name, members in experts.items():
        first = layers.setdefault(name.partition("*")[0], name) if "*" in name else name
        alone = set(members) ^ set(experts[first])
        if alone:
            raise ValueError(
                f"{name}: got one of {first} and {name} for expert {min(alone)}, expected both; add what the "
                "checkpoint lacks"
            )


def _check_joined(
    parts: Sequence[str],
    experts: dict[str, dict[int, str]],
    kinds: dict[str, tuple[Callable[..., Any], tuple[str, ...]]],
    tensors: dict[str, dict[str, Any]],
) -> None:
    """Gate and up are of the same layout and shape."""
    first = parts[0]
    for part in parts[1:]:
        shapes = [
            (
                kinds[name][1],
                {tuple(tensors[base + kinds[name][1][0]]["shape"]) for base in experts[name].values()},
            )
            for name in (first, part)
        ]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{part}: got tensors {shapes[1][0]} of shapes {shapes[1][1]}, expected {shapes[0][0]} of "
                f"{shapes[0][1]} as {first} has, with which it is joined; convert them alike"
            )


def fp4_layers(checkpoint: _C.Checkpoint) -> list[Fp4Layer]:
    """The FP4 layers of a checkpoint by name; `*` stands for the experts of one. ValueError where some are missing."""
    tensors = {tensor["name"]: tensor for tensor in checkpoint.tensors()}
    experts: dict[str, dict[int, str]] = defaultdict(dict)
    kinds: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {}
    for base, importer, suffixes in _matrices(tensors):
        found = EXPERT.fullmatch(base)
        name = f"{found[1]}*{found[3]}" if found else base
        experts[name][int(found[2]) if found else 0] = base
        kinds[name] = (importer, suffixes)
    _check_complete(tensors, {base for members in experts.values() for base in members.values()})
    for name, members in experts.items():
        missing = set(range(len(members))) - set(members)
        if missing:
            raise ValueError(
                f"{name}: got {len(members)} experts, expected number {min(missing)} among them; "
                "the checkpoint lacks one: get it again"
            )
    _check_experts(experts)
    layers = []
    for parts in _joined(sorted(experts)):
        name = parts[-1]
        _check_joined(parts[:-1], experts, kinds, tensors)
        matrices = tuple(
            tuple(experts[part][i] for part in parts[:-1]) for i in range(len(experts[parts[0]]))
        )
        importer, suffixes = kinds[parts[0]]
        size = sum(
            tensors[m + suffix]["num_bytes"] for expert in matrices for m in expert for suffix in suffixes
        )
        layers.append(Fp4Layer(name, matrices, importer, suffixes, size))
    return layers


def _joined(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """(gate, up, joined name) of layers that have both, (name, name) of the others."""
    known, done = set(names), set()
    for name in names:
        head, _, last = name.rpartition(".")
        for gate, up, joined in GATE_UP:
            other = f"{head}.{up}"
            if "*" in name and last == gate and other in known:
                yield name, other, f"{head}.{joined}"
                done |= {name, other}
    for name in names:
        if name not in done:
            yield name, name


def _read(checkpoint: _C.Checkpoint, tensor: dict[str, Any]) -> np.ndarray:
    raw = checkpoint.read(tensor["name"])
    if tensor["dtype"] == "F32":
        return raw.view(np.float32).reshape(tensor["shape"])
    return raw.reshape(*tensor["shape"][:-1], -1)


def _pack(
    checkpoint: _C.Checkpoint, layer: Fp4Layer, tensors: dict[str, Any], form: str | None
) -> _C.Fp4Weights:
    experts: list[list[np.ndarray]] = []
    for matrices in layer.members:
        parts = [
            layer.importer(*(_read(checkpoint, tensors[m + s]) for s in layer.suffixes)) for m in matrices
        ]
        arrays = [np.concatenate([part[i] for part in parts], axis=-2) for i in (0, 1)]
        if len(parts[0]) == 3:  # one global scale for each matrix becomes one for each row
            by_row = [np.broadcast_to(part[2][..., None], part[0].shape[:-1]) for part in parts]
            arrays.append(np.concatenate(by_row, axis=-1))
        experts.append(arrays)
    columns = [column[0] if len(column) == 1 else np.stack(column) for column in zip(*experts, strict=True)]
    fits = form is None or form.startswith("nv") == (len(columns) == 3)
    return pack_fp4_weights(*columns, form=form if fits else None)


def pack_fp4_checkpoint(
    path: str | Path,
    *,
    form: str | None = None,
    report: Fp4Report | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Iterator[tuple[str, _C.Fp4Weights]]:
    """Pack every FP4 matrix of the checkpoint at `path`: (name, Fp4Weights) one by one, in host memory.

    Reads DeepSeek-V4 (I8 and F8_E8M0), NVFP4 (ModelOpt's and compressed-tensors' names) and GGUF MXFP4. The matrices of
    a layer's experts become one object, `layers.0.ffn.experts.*.w2`; gate and up are joined as fused_moe takes them,
    `...experts.*.w13`. `form`: as of pack_fp4_weights, for the layers of that format. `report` is added to;
    progress(done_bytes, total_bytes, name) is called before each layer and at the end. Errors: those of the checkpoint
    and of pack_fp4_weights; ValueError where there is no FP4 matrix.
    """
    if form is not None and form not in FORMS:
        raise ValueError(
            f"pack_fp4_checkpoint: form is {form!r}, expected one of {', '.join(FORMS)}; or leave it out"
        )
    checkpoint = _C.Checkpoint(path_text("pack_fp4_checkpoint", path))
    tensors = {tensor["name"]: tensor for tensor in checkpoint.tensors()}
    layers = fp4_layers(checkpoint)
    if not layers:
        raise ValueError(
            f"pack_fp4_checkpoint: got {path} with {len(tensors)} tensors and no FP4 matrix in a layout that is "
            "known, expected DeepSeek-V4's, NVFP4's of ModelOpt or compressed-tensors, or GGUF MXFP4; import others "
            "with deep_gemm.fp4_formats, or quantise the model first"
        )
    done, total = 0, sum(layer.num_bytes for layer in layers)
    for layer in layers:
        if progress is not None:
            progress(done, total, layer.name)
        try:
            weights = _pack(checkpoint, layer, tensors, form)
        except (ValueError, TypeError) as error:
            raise type(error)(f"{layer.name}: {error}") from error
        if report is not None:
            report.add(layer, weights)
        yield layer.name, weights
        done += layer.num_bytes
    if progress is not None:
        progress(done, total, "")


__all__ = ["Fp4Layer", "Fp4Report", "fp4_layers", "pack_fp4_checkpoint"]
