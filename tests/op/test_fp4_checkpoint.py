"""Packing whole checkpoints: which tensors belong together, what comes out, what is reported, what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference import fp4

import deep_gemm
from deep_gemm import _C
from deep_gemm.models import model_path

Array = np.ndarray[Any, np.dtype[Any]]
RNG = np.random.default_rng(0)
Tensors = dict[str, tuple[str, Array]]


def save(path: Path, tensors: Tensors) -> Path:
    """A safetensors file."""
    header, data = {}, b""
    for name, (dtype, array) in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": dtype,
            "shape": array.shape,
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def mxfp4(n: int, k: int) -> tuple[Array, Array]:
    return RNG.integers(0, 256, (n, k // 2), np.uint8), RNG.integers(110, 125, (n, k // 32)).astype(np.uint8)


def nvfp4(n: int, k: int) -> tuple[Array, Array, Array]:
    codes, scales = (
        RNG.integers(0, 256, (n, k // 2), np.uint8),
        RNG.integers(0x20, 0x50, (n, k // 16)).astype(np.uint8),
    )
    return codes, scales, np.exp2(RNG.integers(-9, 3, ())).astype(np.float32)


def pack(path: Path, **options: Any) -> dict[str, deep_gemm.Fp4Weights]:
    return dict(deep_gemm.pack_fp4_checkpoint(path, **options))


def test_deepseek_experts(tmp_path: Path) -> None:
    """Eleven experts in the order of their numbers, gate above up; what is no FP4 stays out."""
    matrices = {f"layers.3.ffn.experts.{e}.{w}": mxfp4(64, 96) for e in range(11) for w in ("w1", "w2", "w3")}
    tensors: Tensors = {"layers.3.attn.wkv.weight": ("I8", np.zeros((4, 4), np.int8))}
    for name, (codes, scales) in matrices.items():
        tensors |= {f"{name}.weight": ("I8", codes), f"{name}.scale": ("F8_E8M0", scales)}
    seen: list[tuple[int, int, str]] = []
    report = deep_gemm.Fp4Report()
    packed = pack(
        save(tmp_path / "x.safetensors", tensors), report=report, progress=lambda *at: seen.append(at)
    )
    assert list(packed) == ["layers.3.ffn.experts.*.w13", "layers.3.ffn.experts.*.w2"]

    def expected(*names: str) -> Array:
        experts = [
            np.concatenate([fp4.dequantise(*matrices[f"layers.3.ffn.experts.{e}.{w}"]) for w in names])
            for e in range(11)
        ]
        return np.stack(experts)

    assert (fp4.unpack(packed["layers.3.ffn.experts.*.w13"]) == expected("w1", "w3")).all()
    assert (fp4.unpack(packed["layers.3.ffn.experts.*.w2"]) == expected("w2")).all()
    total = 33 * (64 * 48 + 64 * 3)
    assert seen == [
        (0, total, "layers.3.ffn.experts.*.w13"),
        (total * 2 // 3, total, "layers.3.ffn.experts.*.w2"),
        (total, total, ""),
    ]
    assert (report.layers, report.rows, report.stored_bytes, report.worst_error) == (2, 33 * 64, total, 0)
    assert report.rows_beyond == report.extra_runs == 0 and 12 <= report.widest <= 15


@pytest.mark.parametrize("form", [None, "nv_exact"])
def test_nvfp4_experts_with_global_scales_of_their_own(tmp_path: Path, form: str | None) -> None:
    matrices = {
        f"model.layers.0.mlp.experts.{e}.{w}": nvfp4(32, 64)
        for e in range(2)
        for w in ("gate_proj", "up_proj")
    }
    tensors: Tensors = {}
    for name, (codes, scales, shared) in matrices.items():
        tensors[f"{name}.weight"] = ("U8", codes)
        tensors[f"{name}.weight_scale"] = ("F8_E4M3", scales)
        tensors[f"{name}.weight_scale_2"] = ("F32", shared)
    report = deep_gemm.Fp4Report()
    packed = pack(save(tmp_path / "x.safetensors", tensors), form=form, report=report)
    assert list(packed) == ["model.layers.0.mlp.experts.*.gate_up_proj"]
    weights = packed["model.layers.0.mlp.experts.*.gate_up_proj"]
    assert weights.form == (form or "nv_single") and (report.worst_error == 0) == (form == "nv_exact")
    for expert in range(2):
        parts = [
            fp4.nvfp4_of(weights.form, *matrices[f"model.layers.0.mlp.experts.{expert}.{w}"])
            for w in ("gate_proj", "up_proj")
        ]
        assert (fp4.unpack(weights)[expert] == np.concatenate(parts)).all()


def test_compressed_tensors_and_a_stack_of_matrices(tmp_path: Path) -> None:
    """The reciprocal global scale, and experts stored as one tensor with one global scale each."""
    codes, scales, shared = nvfp4(32, 64)
    stack = [nvfp4(32, 64) for _ in range(3)]
    tensors: Tensors = {
        "a.weight_packed": ("U8", codes),
        "a.weight_scale": ("F8_E4M3", scales),
        "a.weight_global_scale": ("F32", np.float32([1 / shared])),
        "b.weight": ("U8", np.stack([one[0] for one in stack])),
        "b.weight_scale": ("F8_E4M3", np.stack([one[1] for one in stack])),
        "b.weight_scale_2": ("F32", np.float32([one[2] for one in stack])),
    }
    packed = pack(save(tmp_path / "x.safetensors", tensors), form="nv_exact")
    assert (fp4.unpack(packed["a"])[0] == fp4.dequantise_nvfp4(codes, scales, shared)).all()
    for expert in range(3):
        assert (fp4.unpack(packed["b"])[expert] == fp4.dequantise_nvfp4(*stack[expert])).all()


def test_the_shipped_model() -> None:
    """Every expert of the tiny model, and the report that the command prints."""
    path = model_path("tiny_v4")
    checkpoint = _C.Checkpoint(str(path))
    packed = pack(path)
    assert len(packed) == 2 * len({name.split(".ffn.")[0] for name in packed})
    raw = {name: checkpoint.read(f"layers.1.ffn.experts.7.w2.{name}") for name in ("weight", "scale")}
    n, k = packed["layers.1.ffn.experts.*.w2"].n, packed["layers.1.ffn.experts.*.w2"].k
    expected = fp4.dequantise(raw["weight"].reshape(n, k // 2), raw["scale"].reshape(n, k // 32))
    assert (fp4.unpack(packed["layers.1.ffn.experts.*.w2"])[7] == expected).all()
    with pytest.raises(ValueError, match="expected the name of a tensor"):
        checkpoint.read("nothing")
    command = [sys.executable, "-m", "deep_gemm", "fp4", "tiny_v4"]
    printed = subprocess.run(command, text=True, capture_output=True, check=True).stdout
    assert f"{len(packed)} layers" in printed and "largest error of a weight: 0.00 %" in printed


def test_what_is_refused(tmp_path: Path) -> None:
    codes, scales = mxfp4(32, 64)
    none = save(tmp_path / "none.safetensors", {"a.weight": ("I8", codes)})
    with pytest.raises(ValueError, match="1 tensors and no FP4 matrix"):
        pack(none)
    gap: Tensors = {}
    for expert in (0, 2):
        gap |= {
            f"experts.{expert}.w1.weight": ("I8", codes),
            f"experts.{expert}.w1.scale": ("F8_E8M0", scales),
        }
    with pytest.raises(ValueError, match="got 2 experts, expected number 1 among them"):
        pack(save(tmp_path / "gap.safetensors", gap))
    gate_up: Tensors = {}
    for expert, w in ((0, "w1"), (1, "w1"), (0, "w3"), (1, "w3")):
        gate_up |= {
            f"experts.{expert}.{w}.weight": ("I8", codes),
            f"experts.{expert}.{w}.scale": ("F8_E8M0", scales),
        }
    pack(save(tmp_path / "both.safetensors", gate_up))
    lacking = {name: tensor for name, tensor in gate_up.items() if "1.w3" not in name}
    with pytest.raises(
        ValueError, match=r"got one of experts.\*.w1 and experts.\*.w3 for expert 1, expected both;"
    ):
        pack(save(tmp_path / "lacking.safetensors", lacking))
    higher = dict(
        zip(
            ("experts.0.w3.weight", "experts.0.w3.scale"),
            zip(("I8", "F8_E8M0"), mxfp4(64, 64), strict=True),
            strict=True,
        )
    )
    with pytest.raises(ValueError, match="convert them alike"):
        pack(save(tmp_path / "higher.safetensors", gate_up | higher))
    for tensor in ("experts.1.w3.scale", "experts.0.w1.scale"):
        codes_name = tensor.replace("scale", "weight")
        unscaled = {name: value for name, value in gate_up.items() if name != tensor}
        with pytest.raises(ValueError, match=f"{codes_name}: got no {tensor}, expected it beside the codes"):
            pack(save(tmp_path / "unscaled.safetensors", unscaled))
    down = {f"experts.0.w2.{end}": gate_up[f"experts.0.w1.{end}"] for end in ("weight", "scale")}
    with pytest.raises(ValueError, match="for expert 1, expected both; add what the checkpoint lacks"):
        pack(save(tmp_path / "down.safetensors", gate_up | down))
    with pytest.raises(
        ValueError, match="form is 'exact', expected one of mx_e4m3, mx_e5m2, nv_single, nv_exact"
    ):
        pack(save(tmp_path / "both.safetensors", gate_up), form="exact")
    nan = scales.copy()
    nan[3, 1] = 255
    bad = save(tmp_path / "nan.safetensors", {"a.weight": ("I8", codes), "a.scale": ("F8_E8M0", nan)})
    with pytest.raises(ValueError, match="row 3, group 1 is 255"):
        pack(bad)
