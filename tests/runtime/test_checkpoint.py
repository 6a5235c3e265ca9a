"""Checkpoints: what is read, and everything that is refused. Headers come from anywhere, so the damaged ones come first."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime.checkpoints import V4, write_checkpoint, write_random_v4

from deep_gemm import _C, Engine
from deep_gemm.models import model_path

TINY = model_path("tiny_v4")


def safetensors(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


GOOD = safetensors(
    {"__metadata__": {"format": "pt"}, "a": entry([2, 2], 0, 16), "b": entry([3], 16, 22, "BF16")}, bytes(22)
)


def test_reads_names_types_and_shapes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(GOOD)
    checkpoint = _C.Checkpoint(str(path))
    assert [(t["name"], t["dtype"], t["shape"], t["num_bytes"]) for t in checkpoint.tensors()] == [
        ("a", "F32", (2, 2), 16),
        ("b", "BF16", (3,), 6),
    ]
    assert checkpoint.num_bytes == 22 and not checkpoint.has_config


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is truncated"),
        (b"\x08\0\0\0\0\0\0", "it is truncated"),
        (struct.pack("<Q", 1 << 60) + b"{}", "a header of 1152921504606846976 bytes"),
        (GOOD[:-1], "the file is truncated or its header is damaged"),
        (GOOD + b"\0", "1 bytes after the last tensor"),
        (safetensors({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)), "overlaps the one before"),
        (safetensors({"a": entry([2], 0, 8), "b": entry([2], 12, 20)}, bytes(20)), "belong to no tensor"),
        (safetensors({"a": entry([3], 0, 8)}, bytes(8)), "needs 12 bytes, the header gives it 8"),
        (safetensors({"a": entry([1 << 33, 1 << 33], 0, 8)}, bytes(8)), "the shape overflows"),
        (safetensors({"a": entry([1 << 62], 0, 8)}, bytes(8)), "needs"),
        (safetensors({"a": entry([2], 8, 0)}, bytes(8)), "is damaged"),
        (safetensors({"a": entry([-2], 0, 8)}, bytes(8)), "expected a number that is not negative"),
        (safetensors({"a": entry([1], 0, 8, "F64")}, bytes(8)), "got dtype F64, expected F32, BF16"),
        (safetensors({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)), "has no 'data_offsets'"),
        (safetensors(b'{"a": {}, "a": {}}', b""), "key 'a' appears twice"),
        (safetensors(b'{"a": ', b""), "not valid JSON, line 1 byte 6"),
        (safetensors(b"[" * 100, b""), "nested more than 64 levels"),
        (safetensors(b"[]", b""), "got an array, expected an object"),
        (safetensors(b"{} x", b""), "text after the value"),
        (safetensors(b'{"a\\ud800": 1}', b""), "half a surrogate pair"),
    ],
)
def test_refuses_damaged_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises((_C.Error, ValueError), match=r"x\.safetensors") as raised:
        _C.Checkpoint(str(path))
    assert message in str(raised.value)


def test_no_prefix_of_a_header_is_read_beyond_its_end(tmp_path: Path) -> None:
    """The text is a part of the mapped file; behind its last byte there may be no memory. Every error names the byte."""
    header = rb'{"a\\\"\u00e9\ud83d\ude00\n": {"x": [-1.5e+3, true, false, null]}, "b": {}}'
    path = tmp_path / "x.safetensors"
    for length in range(len(header)):
        path.write_bytes(safetensors(header[:length], b""))
        with pytest.raises(ValueError, match="not valid JSON") as raised:
            _C.Checkpoint(str(path))
        found = re.search(r"line 1 byte (\d+): (.*);", str(raised.value))
        assert found and int(found[1]) <= length, (length, str(raised.value))
        if header[:length].endswith(b"\\"):
            assert found[2] in ("a string does not end", "half a surrogate pair")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["x.safetensors", "x.gguf"])
def test_a_pipe_is_no_checkpoint(tmp_path: Path, name: str) -> None:
    """And nobody waits for somebody who writes to it."""
    os.mkfifo(tmp_path / name)
    with pytest.raises(_C.Error, match=r"cannot read '.*': it is no regular file"):
        _C.Checkpoint(str(tmp_path / name))


def test_shards(tmp_path: Path) -> None:
    def shard(name: str, tensor: str) -> None:
        (tmp_path / name).write_bytes(safetensors({tensor: entry([1], 0, 4)}, bytes(4)))

    def index(**weight_map: str) -> None:
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    shard("1.safetensors", "a")
    shard("2.safetensors", "b")
    index(a="1.safetensors", b="2.safetensors")
    tensors = _C.Checkpoint(str(tmp_path)).tensors()
    assert [(t["name"], t["file"]) for t in tensors] == [("a", "1.safetensors"), ("b", "2.safetensors")]

    index(a="1.safetensors", b="1.safetensors")
    with pytest.raises(_C.Error, match="tensor 'b' is in no shard"):
        _C.Checkpoint(str(tmp_path))
    index(a="2.safetensors", b="1.safetensors")
    with pytest.raises(_C.Error, match=r"'a' should be in 2.safetensors, it is in 1.safetensors"):
        _C.Checkpoint(str(tmp_path))
    index(a="../1.safetensors")
    with pytest.raises(_C.Error, match="outside the folder"):
        _C.Checkpoint(str(tmp_path))
    shard("2.safetensors", "a")
    index(a="1.safetensors", c="2.safetensors")
    with pytest.raises(_C.Error, match=r"tensor 'a' is in 1.safetensors and in 2.safetensors"):
        _C.Checkpoint(str(tmp_path))
    index(a="gone.safetensors")
    with pytest.raises(_C.Error, match=r"cannot read '.*gone.safetensors': No such file"):
        _C.Checkpoint(str(tmp_path))


def gguf(
    tensors: list[tuple[str, list[int], int, int]], data: bytes, metadata: bytes = b"", count: int = 0
) -> bytes:
    def text(name: str) -> bytes:
        return struct.pack("<Q", len(name)) + name.encode()

    body = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), count) + metadata
    for name, dims, kind, offset in tensors:
        body += text(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims)
        body += struct.pack("<IQ", kind, offset)
    return body + bytes(-len(body) % 32) + data


def test_gguf(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    # One array of two strings, which has to be skipped.
    key = struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 8, 2)
    metadata = key + 2 * (struct.pack("<Q", 2) + b"ab")
    path.write_bytes(gguf([("q", [64, 2], 8, 0), ("f", [3], 0, 160)], bytes(172), metadata, 1))
    rows = [(t["name"], t["dtype"], t["shape"], t["num_bytes"]) for t in _C.Checkpoint(str(path)).tensors()]
    assert rows == [("f", "F32", (3,), 12), ("q", "Q8_0", (2, 64), 136)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGUF", "the file is truncated"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "GGUF version 1, expected 2 or 3"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 40, 0), "the file is damaged"),
        (gguf([("q", [256], 12, 0)], bytes(144)), "stored as Q4_K (12), expected F32"),
        (gguf([("q", [33], 8, 0)], bytes(34)), "no multiple of the 32 elements of a Q8_0 block"),
        (gguf([("q", [32], 8, 0)], bytes(33)), "lies beyond the end of the file"),
        (
            gguf([("a", [8], 0, 0), ("b", [8], 0, 16)], bytes(64)),
            "overlaps the one before it or is not aligned",
        ),
    ],
)
def test_refuses_damaged_gguf(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(_C.Error) as raised:
        _C.Checkpoint(str(path))
    assert message in str(raised.value)


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    """What is refused is said, not that its name cannot be; and such tensors are listed."""
    path = tmp_path / "x.gguf"
    good = gguf([("name", [8], 0, 0)], bytes(32))
    path.write_bytes(good.replace(b"name", b"n\xffme"))
    assert [t["name"] for t in _C.Checkpoint(str(path)).tensors()] == ["n\\xffme"]
    path.write_bytes(gguf([("name", [256], 12, 0)], bytes(144)).replace(b"name", b"n\xffme"))
    with pytest.raises(_C.Error, match=r"tensor 'n\\xffme': stored as Q4_K"):
        _C.Checkpoint(str(path))


def changed(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> Any:
    """The problems of the tiny model with another configuration."""
    shutil.copy(TINY / "model.safetensors", tmp_path)
    config = json.loads((TINY / "config.json").read_text())
    change(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    return _C.Checkpoint(str(tmp_path)).problems()


def test_the_shipped_model_is_complete(emulator: _C.Device) -> None:
    checkpoint = _C.Checkpoint(str(TINY))
    assert checkpoint.problems() == []
    assert Engine("tiny_v4", device=emulator, context=64).weight_bytes == checkpoint.device_bytes()


def test_lists_missing_extra_and_misshapen_tensors(tmp_path: Path) -> None:
    problems = changed(tmp_path, lambda c: c.update(n_routed_experts=17, index_head_dim=64))
    assert "missing: layers.0.ffn.experts.16.w1.weight 128x256" in problems
    assert "shape: layers.1.attn.indexer.wq_b.weight is 1024x128, expected 512x128" in problems
    problems = changed(tmp_path, lambda c: c.update(num_hidden_layers=2, compress_ratios=[0, 4, 0]))
    assert any(p.startswith("extra: layers.2.attn.wq_a.weight F8_E4M3 128x256") for p in problems)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hidden_size", None, "hidden_size is missing"),
        ("vocab_size", (1 << 19) + 1, "vocab_size: got 524289, expected 2 to 524288"),  # as op::argmax takes
        ("hidden_size", "256", "hidden_size: got a string, expected a whole number"),
        ("hidden_size", 256.5, "got 256.5, expected a whole number"),
        ("num_experts_per_tok", 17, "num_experts_per_tok: got 17, expected 1 to 16"),
        ("compress_ratios", [0, 4], "got 2 entries, expected one for each of 3 layers"),
        ("compress_ratios", [0, 3, 128], "got 3 at 1, expected 0, 4, or up to 1024"),
        ("model_type", "llama", "got 'llama', expected 'deepseek_v4' or 'qwen3_moe'"),
        ("norm_topk_prob", False, "norm_topk_prob: got false, expected true"),
        ("hc_mult", 3, "hc_mult: got 3, expected 2 or 4"),
        ("index_head_dim", 96, "index_head_dim: got 96, expected 32, 64 or 128"),
        ("scoring_func", "sigmoid", "got 'sigmoid', expected 'sqrtsoftplus'"),
        ("rope_scaling", {"factor": 16}, "original_max_position_embeddings is missing"),
    ],
)
def test_refuses_configurations(tmp_path: Path, key: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError) as raised:
        changed(tmp_path, lambda c: c.update({key: value}))
    assert message in str(raised.value)


def test_every_byte_of_a_header_matters_or_is_harmless(tmp_path: Path) -> None:
    """Flipping any byte of the header gives an error or a readable file, never a crash or an out-of-bounds view."""
    rng = np.random.default_rng(1)
    path = tmp_path / "x.safetensors"
    for position in rng.permutation(len(GOOD) - 22)[:120]:
        content = bytearray(GOOD)
        content[position] ^= int(rng.integers(1, 256))
        path.write_bytes(content)
        try:
            tensors = _C.Checkpoint(str(path)).tensors()
        except (_C.Error, ValueError):
            continue
        assert sum(t["num_bytes"] for t in tensors) == 22


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_refuses_experts_that_are_none(emulator: _C.Device, tmp_path: Path, dtype: Any) -> None:
    """Hash routing's table; the lower halves of large I64 ids are experts."""
    folder = write_random_v4(tmp_path)
    content = (folder / "model.safetensors").read_bytes()
    data = 8 + struct.unpack("<Q", content[:8])[0]
    tensors = {}
    for name, described in json.loads(content[8:data]).items():
        begin, end = (data + offset for offset in described["data_offsets"])
        stored = np.float32 if described["dtype"] == "F32" else np.int32
        tensors[name] = np.frombuffer(content[begin:end], stored).reshape(described["shape"])
    name = "layers.0.ffn.gate.tid2eid"
    ids = tensors[name].astype(dtype)
    for wrong in (None, -1, 4, *([(1 << 32) + 3, -(1 << 32)] if dtype == np.int64 else [])):
        if wrong is not None:
            ids[5, 1] = wrong
        write_checkpoint(tmp_path, V4, {**tensors, name: ids})
        if wrong is None:
            Engine(folder, device=emulator, numerics="exact", context=32)
            continue
        with pytest.raises(ValueError, match=rf"tid2eid names expert {wrong}, expected 0 to 3"):
            Engine(folder, device=emulator, numerics="exact", context=32)
