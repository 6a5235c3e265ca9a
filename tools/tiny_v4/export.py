"""The trained model as a checkpoint: names, formats and scales as DeepSeek-V4 is released."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import torch

from tiny_v4.model import Model
from tiny_v4.rounding import to_fp8, to_mxfp4

Stored = tuple[str, torch.Tensor]  # the file's name of a type, and memory of its size


def _codes(w: torch.Tensor, stored: str) -> dict[str, Stored]:
    """ "weight" and "scale" of a matrix."""
    if stored == "fp4":
        codes, e = to_mxfp4(w)
        pairs = codes[..., 0::2] | codes[..., 1::2] << 4
        return {"weight": ("I8", pairs), "scale": ("F8_E8M0", (e + 127).to(torch.uint8))}
    fp8, e = to_fp8(w)
    return {"weight": ("F8_E4M3", fp8.view(torch.uint8)), "scale": ("F8_E8M0", (e + 127).to(torch.uint8))}


def stored_tensors(model: Model) -> dict[str, Stored]:
    out: dict[str, Stored] = {}
    for name, value in model.master.items():
        stored, w = model.stored[name], value.detach().float()
        if stored == "fp4":
            at, half = name.rpartition("w")[0], w.shape[1] // 2  # "..experts."
            for i, expert in enumerate(w):
                parts = {"w1": expert[:half], "w3": expert[half:]} if name.endswith("w13") else {"w2": expert}
                for part, matrix in parts.items():
                    out |= {f"{at}{i}.{part}.{k}": v for k, v in _codes(matrix, "fp4").items()}
        elif stored == "fp8":
            out |= {name.removesuffix("weight") + k: v for k, v in _codes(w, "fp8").items()}
        elif stored == "bf16":
            out[name] = ("BF16", w.bfloat16().view(torch.int16))
        else:
            out[name] = ("F32", w)
    out |= {at + "ffn.gate.bias": ("F32", bias) for at, bias in model.bias.items()}
    out |= {at + "ffn.gate.tid2eid": ("I64", table) for at, table in model.table.items()}
    return out


def write(folder: Path, model: Model) -> int:
    """config.json and model.safetensors; returns the bytes of the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.c.config, indent=1) + "\n")
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    pieces, end = list[bytes](), 0
    # Wide types first, so that every tensor starts at a multiple of its elements' size.
    for name, (kind, value) in sorted(
        stored_tensors(model).items(), key=lambda item: (-item[1][1].element_size(), item[0])
    ):
        raw = value.cpu().contiguous().numpy().tobytes()
        header[name] = {"dtype": kind, "shape": list(value.shape), "data_offsets": [end, end + len(raw)]}
        pieces.append(raw)
        end += len(raw)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(pieces))
    return path.stat().st_size
