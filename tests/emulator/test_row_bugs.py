"""Bugs injected into the kernels that treat a row alone (embedding, norm, rotation, cache rows) must be caught."""

from __future__ import annotations

import numpy as np
from emulator.op_bugs import Bug, Launch, bug_tests, check_caught, pack, text
from ops_cases import real
from reference import deepseek_v4 as ref

from deep_gemm import ops


def embed() -> tuple[Launch, str]:
    rng = np.random.default_rng(31)
    d, streams = 640, 2  # a CTA has threads for 512 channels
    table, x, tokens = real(rng, (5, d)), real(rng, (3, streams, d)), np.array([4, 7, 0], np.int32)
    rows = np.stack([table[4], np.zeros(d), table[0]])  # token 7 is not in the vocabulary
    params = pack(["table", (d,), (0,)], ["x", (streams * d,), (d,)], "tokens", 5, streams, d)
    launch = Launch("deep_gemm::embed<kSpec>", (3,), 128, 0, {"table": table, "x": x, "tokens": tokens}, params,
                    {"x": x.astype(np.float64) + rows[:, None]}, 1e-6)  # fmt: skip
    return launch, text("embed", "EmbedSpec", ".value = Format::fp32, .accumulate = true")


def rms_norm() -> tuple[Launch, str]:
    rng = np.random.default_rng(32)
    rows, inner, d, eps = 2, 2, 640, 0.5
    x, weight = real(rng, (rows, inner, d)), real(rng, (d,))
    x[1] *= 3
    view = ((inner * d,), (d,))
    params = pack(["x", *view], ["y", *view], "weight", None, None, None, inner, d, eps)
    arrays = {"x": x, "weight": weight, "y": np.full(x.shape, np.nan, np.float32)}
    launch = Launch("deep_gemm::rms_norm<kSpec>", (rows * inner,), 128, 16, arrays, params,
                    {"y": ref.rms_norm(x, weight, eps)}, 1e-5)  # fmt: skip
    return launch, text("norm", "NormSpec", ".weight = Format::fp32")


def rope(heads: int = 2, of_block: int = 1) -> tuple[Launch, str]:
    rng = np.random.default_rng(33)
    positions, d, f = np.array([7, -1, 90], np.int32), 256, ref.frequencies(64, 1e4)
    x, weight = real(rng, (3, heads, d)), real(rng, (d,))
    y = np.stack(
        [ref.rotate(ref.rms_norm(x[t], weight, 1e-6), max(int(positions[t]), 0), f) for t in range(3)]
    )
    y[1] = 0
    view = ((heads * d,), (d,))
    params = pack(["x", *view], ["y", *view], "weight", "frequencies", "positions", heads, d, 64, 1e-6)
    arrays = {"x": x, "weight": weight, "frequencies": ops.rope_frequencies(64, 1e4), "positions": positions,
              "y": np.zeros(y.shape, np.float32)}  # fmt: skip
    launch = Launch(
        "deep_gemm::rope<kSpec>", (3 * heads // of_block,), 128, 64, arrays, params, {"y": y}, 1e-4
    )
    return launch, text("rope", "LatentSpec", f".weight = Format::fp32, .heads = {of_block}")


def rope_heads() -> tuple[Launch, str]:
    return rope(8, 4)


def rope_warps() -> tuple[Launch, str]:
    """A warp a head, without a norm, through the transform of the indexer."""
    rng = np.random.default_rng(37)
    positions, heads, d, f = np.array([7, -1, 90], np.int32), 8, 128, ref.frequencies(64, 1e4)
    x = real(rng, (3, heads, d))
    y = np.stack([ref.hadamard(ref.rotate(x[t], max(int(positions[t]), 0), f)) for t in range(3)])
    y[1] = 0
    view = ((heads * d,), (d,))
    params = pack(["x", *view], ["y", *view], None, "frequencies", "positions", heads, d, 64, 1e-6)
    arrays = {"x": x, "frequencies": ops.rope_frequencies(64, 1e4), "positions": positions,
              "y": np.zeros(y.shape, np.float32)}  # fmt: skip
    launch = Launch("deep_gemm::rope<kSpec>", (3 * heads // 4,), 128, 64, arrays, params, {"y": y}, 1e-4)
    fields = ".weight = Format::none, .finish = RowFinish::hadamard, .norm = false, .heads = 4"
    return launch, text("rope", "LatentSpec", fields)


# Four tokens: to row 5 % 4 of sequence 1, idle, to row 2 of sequence 0, to a sequence that there is not.
POSITIONS, SEQUENCES, RING_ROWS = np.array([5, -1, 2, 3], np.int32), np.array([1, 0, 0, 2], np.int32), 4


def latent_write() -> tuple[Launch, str]:
    rng = np.random.default_rng(34)
    d, f = 256, ref.frequencies(64, 1e4)
    x, weight = real(rng, (4, d)), real(rng, (d,))
    ring = np.zeros((2, RING_ROWS, d))
    for t, place in ((0, (1, 1)), (2, (0, 2))):
        ring[place] = ref.rotate(ref.rms_norm(x[t], weight, 1e-6), int(POSITIONS[t]), f)
    params = pack(["x", (d,), (0,)], "weight", "frequencies", "positions", "sequences",
                  ["ring", (RING_ROWS * d,), (d,), 2, RING_ROWS, 1, 0, None], d, 64, 1e-6)  # fmt: skip
    arrays = {"x": x, "weight": weight, "frequencies": ops.rope_frequencies(64, 1e4), "positions": POSITIONS,
              "sequences": SEQUENCES, "ring": np.zeros(ring.shape, np.float32)}  # fmt: skip
    launch = Launch("deep_gemm::latent_write<kSpec>", (4,), 128, 16, arrays, params, {"ring": ring}, 1e-4)
    return launch, text("rope", "LatentSpec", ".weight = Format::fp32")


def cache_write() -> tuple[Launch, str]:
    rng = np.random.default_rng(35)
    inner, d, pitch = 3, 200, 208  # 600 channels, of which a CTA has threads for 512; heads are further apart
    x = real(rng, (4, inner, d))
    rows = np.zeros((2, RING_ROWS, inner, pitch))
    rows[1, 1, :, :d], rows[0, 2, :, :d] = x[0], x[2]
    params = pack(["x", (inner * d,), (d,)], "positions", "sequences",
                  ["rows", (RING_ROWS * inner * pitch,), (inner * pitch,), 2, RING_ROWS, 1, 0, None], (pitch,), inner, d)  # fmt: skip
    arrays = {
        "x": x,
        "positions": POSITIONS,
        "sequences": SEQUENCES,
        "rows": np.zeros(rows.shape, np.float32),
    }
    launch = Launch("deep_gemm::cache_write<kSpec>", (4,), 128, 16, arrays, params, {"rows": rows})
    return launch, text("rope", "LatentSpec", "")


def compressor_restore() -> tuple[Launch, str]:
    count = 1284  # the third CTA has a thread's work
    journal = real(np.random.default_rng(36), (3, count))
    params = pack("journal", "row", "state", 3, count)
    arrays = {"journal": journal, "row": np.array([1], np.int32), "state": np.full(count, np.nan, np.float32)}
    launch = Launch("deep_gemm::compressor_restore<kSpec>", (3,), 128, 0, arrays, params,
                    {"state": journal[1].astype(np.float64)})  # fmt: skip
    return launch, text("compressor", "CompressorSpec", "")


def hc_post() -> tuple[Launch, str]:
    rng = np.random.default_rng(37)
    rows, d = 2, 1040
    x, y, post, comb = (
        real(rng, (rows, 4, d)),
        real(rng, (rows, d)),
        real(rng, (rows, 4)),
        real(rng, (rows, 4, 4)),
    )
    wide = [a.astype(np.float64) for a in (x, y, post, comb)]
    out = wide[2][:, :, None] * wide[1][:, None] + np.einsum("tab,tad->tbd", wide[3], wide[0])
    view = ((4 * d,), (d,))
    params = pack(["x", *view], ["out", *view], ["y", (d,), (0,)], "post", "comb", d)
    arrays = {"x": x, "y": y, "post": post, "comb": comb, "out": np.full(x.shape, np.nan, np.float32)}
    launch = Launch("deep_gemm::hc_post<kSpec>", (rows * 3,), 128, 0, arrays, params, {"out": out}, 1e-5)
    return launch, text("hyper_connection", "HcPostSpec", "")


CASES = {
    "embed": embed,
    "rms_norm": rms_norm,
    "rope": rope,
    "rope_heads": rope_heads,
    "rope_warps": rope_warps,
    "latent_write": latent_write,
    "cache_write": cache_write,
    "compressor_restore": compressor_restore,
    "hc_post": hc_post,
}
BUGS = [
    ("embed", Bug("a token of no vocabulary", "if (known) v = ", "v = ", 8)),
    ("embed", Bug("channels of the first threads only", "i < p.d; i += kEmbedThreads * 4", "i < kEmbedThreads * 4; i += kEmbedThreads * 4", 8)),
    ("embed", Bug("the first stream only", "stream < p.streams;", "stream < 1;", 8)),
    ("embed", Bug("rows by place", "S.gather ? static_cast<u32>(ptx::ld_global_s32(p.tokens + row)) : row;", "row;", 8)),
    ("embed", Bug("what was there is lost", "old.x + v.x", "v.x", 8)),
    ("rms_norm", Bug("squares of a warp", "tile::cta_sum<kNormThreads>(ptx::dynamic_smem() + plan_smem(S).sums, squares)", "tile::warp_sum(squares)", 8)),
    ("rms_norm", Bug("sums read before they are there", "values[i]);\n    }\n    ptx::named_barrier_sync(0, Threads);", "values[i]);\n    }")),
    ("rms_norm", Bug("no eps", "static_cast<float>(d) + eps)", "static_cast<float>(d))", 8)),
    ("rms_norm", Bug("the tail is not summed", "i < p.d; i += kNormThreads * 4)\n        squares", "i < kNormThreads * 4; i += kNormThreads * 4)\n        squares", 8)),
    ("rms_norm", Bug("weights of the first channels", "tile::load4<S.weight>(p.weight, i)", "tile::load4<S.weight>(p.weight, first)", 8)),
    ("rope", Bug("idle rows are written", "    if (position < 0) return;\n    const tile::Float4 v = rotated_head", "    const tile::Float4 v = rotated_head", 8)),
    ("rope", Bug("all channels are turned", "if (channel >= d || channel < d - dims) return;", "if (channel >= d) return;", 8)),
    ("rope", Bug("turned backwards", "ptx::fma_rn_f32(a, r.cos, -ptx::mul_rn_f32(b, r.sin))", "ptx::fma_rn_f32(a, r.cos, ptx::mul_rn_f32(b, r.sin))", 8)),
    ("rope", Bug("one angle for two pairs", "rotate(v.z, v.w, rotation_at(frequencies, pair + 1,", "rotate(v.z, v.w, rotation_at(frequencies, pair,", 8)),
    ("rope", Bug("norm of a warp", "cta_sums<Threads>(smem, squares);", "for (float& one : squares) one = warp_sum(one);", 8)),
    ("rope_heads", Bug("heads of the block before", "first = block * S.heads % p.inner", "first = 0", 8)),
    ("rope_heads", Bug("one angle for two pairs", "(channel - (p.d - p.dims)) / 2 + i", "(channel - (p.d - p.dims)) / 2", 8)),
    ("rope_heads", Bug("heads have each other's sums", "smem + (i * kWarps + warp) * 4", "smem + warp * 4", 8)),
    ("rope_heads", Bug("sums read before they are there", "values[i]);\n    }\n    ptx::named_barrier_sync(0, Threads);", "values[i]);\n    }")),
    ("rope_warps", Bug("warps have the same head", "block * S.heads + ptx::warp_index()", "block * S.heads", 8)),
    ("rope_warps", Bug("idle rows are written", "    if (position < 0) return;\n    tile::Float4 v{};\n    if (channel < p.d) v = tile::load4<S.x>(p.x.data, row * p.x.stride + inner * p.x.inner_stride + channel);\n    tile::rotate4", "    tile::Float4 v{};\n    if (channel < p.d) v = tile::load4<S.x>(p.x.data, row * p.x.stride + inner * p.x.inner_stride + channel);\n    tile::rotate4", 8)),
    ("latent_write", Bug("rows are no ring", "static_cast<u32>(position) % p.rows.rows, channel", "static_cast<u32>(position), channel", 8)),
    ("latent_write", Bug("a sequence that is not there", "if (position < 0 || sequence >= p.rows.sequences) return;\n    const u32 channel", "if (position < 0) return;\n    const u32 channel", 8)),
    ("latent_write", Bug("idle tokens are written", "if (position < 0 || sequence >= p.rows.sequences) return;\n    const u32 channel", "if (sequence >= p.rows.sequences) return;\n    const u32 channel", 8)),
    ("latent_write", Bug("all to the first sequence", "write_latent<S.rows>(p.rows, sequence,", "write_latent<S.rows>(p.rows, 0,", 8)),
    ("latent_write", Bug("turned by the place in the batch", "p.frequencies, position, false);", "p.frequencies, static_cast<i32>(row), false);", 8)),
    ("cache_write", Bug("channels of the first threads only", "i < p.inner * p.d; i += kLatentThreads * 4", "i < kLatentThreads * 4; i += kLatentThreads * 4", 8)),
    ("cache_write", Bug("rows are no ring", "sequence, static_cast<u32>(position) % p.rows.rows);\n    for", "sequence, static_cast<u32>(position));\n    for", 8)),
    ("cache_write", Bug("heads without their distance", "to + inner * p.stride_inner + channel", "to + inner * p.d + channel", 8)),
    ("cache_write", Bug("a sequence that is not there", "if (position < 0 || sequence >= p.rows.sequences) return;\n    const u64 to", "if (position < 0) return;\n    const u64 to", 8)),
    ("cache_write", Bug("idle tokens are written", "if (position < 0 || sequence >= p.rows.sequences) return;\n    const u64 to", "if (sequence >= p.rows.sequences) return;\n    const u64 to", 8)),
    ("compressor_restore", Bug("the first token's state", "p.journal + static_cast<u64>(row) * p.count + i", "p.journal + i", 8)),
    ("compressor_restore", Bug("threads beyond the state", "if (row >= p.tokens || i >= p.count) return;", "if (row >= p.tokens) return;", 8)),
    ("compressor_restore", Bug("every CTA the first part", "(ptx::block_index() * kLatentThreads + ptx::thread_index()) * 4;\n    if (row", "ptx::thread_index() * 4;\n    if (row", 8)),
    ("compressor_restore", Bug("parts that overlap", "ptx::thread_index()) * 4;\n    if (row", "ptx::thread_index()) * 2;\n    if (row", 8)),
    ("hc_post", Bug("comb transposed", "p.comb + (row * H + a) * H + b", "p.comb + (row * H + b) * H + a", 8)),
    ("hc_post", Bug("threads beyond the channels", "if (channel >= p.d) return;\n    const tile::Float4 y", "const tile::Float4 y", 8)),
    ("hc_post", Bug("post of the first stream", "p.post + row * H + b", "p.post + row * H", 8)),
    ("hc_post", Bug("the first stream is lost", "for (u32 a = 0; a < H; ++a) {\n            const float c", "for (u32 a = 1; a < H; ++a) {\n            const float c", 8)),
    ("hc_post", Bug("output of the first row", "p.y.data, row * p.y.stride + channel);\n    tile::Float4 x[H];", "p.y.data, channel);\n    tile::Float4 x[H];", 8)),
]  # fmt: skip

test_clean, test_bugs = bug_tests(CASES, BUGS, check_caught)
