"""Kernels of the model operations build without warnings, spills or stack frames."""

from __future__ import annotations

import pytest

from deep_gemm import _C

FP8 = ".x = Format::fp8_e4m3, .w = Format::fp8_e4m3, .w_scale = Format::fp8_ue8m0"
FP4 = ".x = Format::fp8_e4m3, .w = Format::fp4_e2m1, .w_scale = Format::fp8_ue8m0"
ALL_FP8 = (
    ".rows = Format::fp8_e4m3, .compressed = Format::fp8_e4m3, .picks = true, .sinks = true, .rotate = true"
)
ALL_SEEN = ".compressed = true, .picks = true, .sinks = true, .rotate = true"
MMA_BF16 = ".y = Format::bf16"
MMA_MIXED = ".w = Format::fp8_e4m3, .w_scale = Format::fp32, .y = Format::bf16"
MMA_FP8 = ".x = Format::fp8_e4m3, " + MMA_MIXED
HC = ".x = Format::fp32, .y = Format::bf16, .weight = Format::fp32, .add = Format::bf16, .narrow = true"
MXFP4, NVFP4 = ", .recipe = Recipe::mxfp4", ", .recipe = Recipe::nvfp4"
HC_WIDE = HC.replace(".narrow", ".threads = 256, .steps = 4, .narrow")
WRITE = ".write = {.x = Format::bf16, .weight = Format::fp32, .rows = Format::fp8_e4m3}"
ROWS = ".norm = {.x = Format::bf16, .y = Format::bf16, .weight = Format::fp32, .narrow = true}, " + WRITE
NORMED = ".input = StagedInput::normed, .weight = Format::bf16, .row_tiles = 4, .depth = 4"
COMPRESSORS = (
    ".main = {.weight = Format::fp32, .rows = Format::fp8_e4m3, .journal = true}, "
    ".index = {.weight = Format::fp32, .rows = Format::bf16, .finish = RowFinish::hadamard_fp4}, "
    ".has_main = true, .has_index = true"
)
HEADS = (
    ".query = {.x = Format::bf16, .weight = Format::none, .rows = Format::bf16}, "
    ".index = {.x = Format::bf16, .weight = Format::none, .rows = Format::bf16, "
    ".finish = RowFinish::hadamard_fp4, .norm = false}, .has_index = true"
)
BF16_ROWS = ".q = Format::bf16, .rows = Format::bf16"

FEW_UP = (
    ".w = {.fp4 = true}, .x = Format::fp8_e4m3, .rule = ScaleRule::up, .chunks = 32, "
    ".limited = true, .weighted = true"
)

# (header, spec type) -> kernel -> specs
KERNELS = {
    ("project", "ProjectSpec"): {"project": ["", ".rows = 4", FP8 + ", .rows = 4", FP4 + ", .rows = 4"]},
    ("expert", "ProjectSpec"): {
        "expert_up": ["", FP8, FP4],
        "expert_down": ["", FP8, FP4 + ", .add = Format::fp32"],
    },
    ("norm", "NormSpec"): {
        "rms_norm": [
            "",
            ".weight = Format::bf16",
            *(
                ".y = Format::bf16, .weight = Format::fp32, .narrow = true" + more
                for more in ("", MXFP4, NVFP4 + ", .rule = ScaleRule::exact")
            ),
        ]
    },
    ("scale_layout", "ScaleLayoutSpec"): {
        "transpose_fp32": ["", ".rows_are_neighbours = true"],
        "pack_fp32_into_ue8m0": [
            rows + groups
            for rows in (".rows_are_neighbours = false", ".rows_are_neighbours = true")
            for groups in ("", ", .grouped = true")
        ],
    },
    ("embed", "EmbedSpec"): {"embed": ["", ".gather = false, .accumulate = true"]},
    ("hyper_connection", "HcSpec"): {
        "hc_mix": [
            "",
            ".x = Format::bf16, .weight = Format::bf16",
            ".head = true",
            ".streams = 2",
            HC,
            HC + MXFP4,
            HC.replace(".narrow", ".tokens = 8, .narrow") + NVFP4,
            HC_WIDE + NVFP4,
            HC.replace(".narrow", ".tokens = 2, .narrow"),
            HC.replace(".narrow", ".tokens = 4, .narrow"),
            HC.replace(".narrow", ".tokens = 8, .narrow"),
            HC_WIDE,
            ".x = Format::bf16, .y = Format::bf16, .weight = Format::fp32, .add = Format::bf16, .tokens = 8",
            HC.replace(".narrow", ".streams = 2, .tokens = 8, .narrow").replace("fp32", "bf16", 1) + NVFP4,
        ],
    },
    ("hyper_connection", "HcPostSpec"): {"hc_post": ["", ".x = Format::bf16, .y = Format::bf16"]},
    ("router", "RouterSpec"): {
        "route": ["", ".bias = true", ".hash = true", ".score = RouterScore::softmax"]
    },
    ("rope", "LatentSpec"): {
        "rope": ["", ".finish = RowFinish::hadamard_fp4, .norm = false", ".pairs = RopePairs::halves"],
        "latent_write": ["", ".rows = Format::fp8_e4m3", ".finish = RowFinish::fp8_round_trip"],
        "cache_write": [""],
    },
    ("compressor", "CompressorSpec"): {
        "compressor_update": [
            "",
            ".overlap = false",
            ".rows = Format::fp8_e4m3, .journal = true",
            ".rows = Format::fp4_e2m1, .finish = RowFinish::hadamard_fp4",
        ],
        "compressor_restore": [""],
    },
    ("indexer", "IndexScoreSpec"): {
        "index_scores": ["", ".query = Format::bf16, .rows = Format::bf16", ".rows = Format::fp4_e2m1"]
    },
    ("indexer", "IndexMmaSpec"): {"index_mma": ["", ".rows = Format::fp4_e2m1"]},
    ("index_wide", "IndexWideSpec"): {"index_wide": [""]},
    ("index_few", "IndexFewSpec"): {
        "index_few": ["", ".rows = Format::fp4_e2m1, .finish = RowFinish::hadamard_fp4"]
    },
    ("top_k", "TopKSpec"): {
        "top_k": [
            "",
            ".held = 32768",
            ".cluster = 8",
            ".cluster = 8, .held = 32768",
            ".peaks = true",
            ".held = 32768, .peaks = true",
        ]
    },
    ("attention", "AttentionSpec"): {"attention": ["", ALL_FP8]},
    ("latent_mma", "LatentMmaSpec"): {
        "latent_mma": [ALL_SEEN, ALL_SEEN + ", .split = true", ALL_SEEN + ", .tiles = 2"]
    },
    ("latent_few", "LatentMmaSpec"): {
        "latent_few": [
            ".split = true",
            ALL_SEEN + ", .split = true",
            ALL_SEEN + ", .split = true, .raw = true",
            ".compressed = true, .sinks = true, .rotate = true, .split = true, .raw = true, .alone = true",
        ]
    },
    ("latent_wide", "LatentMmaSpec"): {
        "latent_wide": [
            ALL_SEEN + ", .wide = true",
            ".compressed = true, .sinks = true, .rotate = true, .wide = true",
        ]
    },
    ("latent_mma", "LatentMergeSpec"): {"latent_merge": [ALL_SEEN]},
    ("project_mma", "ProjectMmaSpec"): {
        "project_mma": [
            formats + tiles
            for formats in (MMA_BF16, MMA_MIXED, MMA_FP8)
            for tiles in ("", ", .token_tiles = 2", ", .row_tiles = 2", ", .row_tiles = 2, .token_tiles = 4")
        ]
        + [MMA_MIXED + ", .rounds = true"]
    },
    ("project_mma", "ProjectPairSpec"): {
        "project_pair": [
            f".first = {{{MMA_FP8}{tiles}}}, .second = {{.y = Format::fp32{tiles}}}"
            for tiles in ("", ", .row_tiles = 2, .token_tiles = 4")
        ]
    },
    ("project_wide", "ProjectMmaSpec"): {
        "project_wide": [formats + ", .wide = true" for formats in (MMA_BF16, MMA_MIXED, MMA_FP8)]
    },
    ("hc_sums", "HcSumsSpec"): {"hc_sums": ["", ".add = Format::bf16"]},
    ("hc_few", "HcFewSpec"): {
        "hc_few": [
            "",
            *(
                f".weight = Format::{weight}, .add = Format::bf16, {steps}.narrow = true" + recipe
                for weight in ("bf16", "fp32")
                for steps in ("", ".steps = 2, ")
                for recipe in ("", MXFP4, NVFP4)
            ),
        ]
    },
    ("hc_apply", "HcApplySpec"): {
        "hc_apply": [
            ".weight = Format::bf16" + more
            for more in (
                ", .steps = 2, .narrow = true",
                ", .steps = 4, .narrow = true",
                ", .steps = 2, .narrow = true, .recipe = Recipe::nvfp4",
            )
        ]
    },
    ("project_operands", "ProjectOperandsSpec"): {
        "project_operands": ["", ".w = Format::fp8_e4m3", ".x = Format::fp8_e4m3, .w = Format::fp8_e4m3"]
    },
    ("project_few", "ProjectMmaSpec"): {
        "project_few": [
            spec.replace("TILES", ".row_tiles = 4, " if few == 1 else ".row_tiles = 2, " if few == 2 else "")
            + f"{rounds}.few = {few}, .depth = {depth}, .tokens = 8"
            for spec, rounds, few, depth in (
                (MMA_BF16 + ", TILES", "", 4, 3),
                (MMA_BF16 + ", TILES", "", 16, 3),
                (MMA_MIXED + ", TILES", "", 4, 6),
                (MMA_MIXED + ", TILES", ".rounds = true, ", 2, 6),
                (MMA_MIXED + ", TILES", ".rounds = true, ", 8, 6),
                (MMA_FP8 + ", TILES", "", 1, 6),
                (MMA_FP8 + ", TILES", "", 2, 6),
                (MMA_FP8 + ", TILES", "", 4, 4),
                (MMA_FP8 + ", TILES", "", 8, 6),
            )
        ]
    },
    ("project_few", "ProjectPairSpec"): {
        "project_few_pair": [
            f".first = {{{MMA_FP8}, .few = 4, .depth = 4, .tokens = {t}}}, .second = {{{MMA_BF16}, .few = 4, .depth = 3, .tokens = {t}}}"
            for t in (1, 8)
        ]
    },
    ("project_staged", "ProjectStagedSpec"): {
        "project_staged": [
            f".few = {few}, .row_tiles = {tiles}, .depth = 4, .tokens = {tokens}"
            for few, tiles in ((1, 4), (2, 2), (4, 1), (8, 1))
            for tokens in (1, 3)
        ]
    },
    ("query_rows", "QueryRowsSpec"): {
        "query_rows": [
            f".project = {{{NORMED}, .tokens = {tokens}}}, {WRITE}{rest}"
            for tokens in (1, 3)
            for rest in ("", ", " + COMPRESSORS)
        ]
    },
    ("query_index", "QueryIndexSpec"): {
        "query_index": [
            f".project = {{{NORMED}, .tokens = {tokens}}}, .index = {{.rows = Format::fp4_e2m1, .finish = RowFinish::hadamard_fp4}}"
            for tokens in (1, 3)
        ]
    },
    ("moe_joined", "RouteActivateSpec"): {
        "route_activate": [".route = {.bias = true}, .activate = {.rule = ScaleRule::up, .limited = true}"]
    },
    ("moe_joined", "ProjectGroupSpec"): {
        "project_group": [
            f".project = {{{MMA_FP8}{tiles}}}" for tiles in ("", ", .row_tiles = 2, .token_tiles = 4")
        ]
    },
    ("attention_rows", "AttentionRowsSpec"): {"attention_rows": [ROWS, ROWS + ", " + COMPRESSORS]},
    ("moe_joined", "ProjectFewUpSpec"): {
        "project_few_up": [f".project = {{{MMA_FP8}}}, .few = {{{FEW_UP}}}"]
    },
    ("sm90_moe_few", "MoeFewUpSpec"): {
        "sm90_moe_few_up": [".chunks = 16", ".chunks = 32", FEW_UP, FEW_UP.replace("32", "56")]
    },
    ("sm90_moe_few", "MoeFewDownSpec"): {
        "sm90_moe_few_down": [
            f"{w}.combine = {{.top_k = {top_k}, .combine_weighted = true, .shared = true}}"
            for w, top_k in (
                (".chunks = 12, ", 8),
                (".w = {.fp4 = true}, .chunks = 24, ", 6),
                (".w = {.fp4 = true}, .chunks = 24, .ctas = 3, ", 6),
            )
        ]
    },
    ("attention_rows", "AttentionHeadsSpec"): {"attention_heads": ["", HEADS]},
    ("gqa_rows", "GqaRowsSpec"): {"gqa_rows": [""]},
    ("gqa", "GqaSpec"): {
        "gqa_pieces": ["", BF16_ROWS, ".d = 64", ".d = 32"],
        "gqa_join": ["", ".out = Format::bf16, .d = 64", ".out = Format::bf16, .fp8 = true"],
    },
    ("sample", "SampleSpec"): {
        "argmax": [""],
        "sample_distribution": [""],
        "sample_draw": [""],
        "accept_drafts": ["", ".sampled = true"],
        "fill_positions": [""],
    },
}


@pytest.mark.parametrize(("header", "spec"), KERNELS, ids=str)
def test_no_spills(header: str, spec: str) -> None:
    sources = [
        _C.KernelSource(
            kernel,
            f"#include <deep_gemm/kernel/{header}.cuh>\nusing namespace deep_gemm;\nconstexpr {spec} kSpec{{{fields}}};\n",
            f"deep_gemm::{kernel}<kSpec>",
        )
        for kernel, specs in KERNELS[header, spec].items()
        for fields in specs
    ]
    for source, artifact in zip(sources, _C.build_all(sources), strict=True):
        stats = artifact.stats
        assert stats["warnings"] == [], source.code
        assert stats["spill_store_bytes"] == stats["spill_load_bytes"] == stats["stack_bytes"] == 0, (
            source.code
        )
        assert 0 < stats["registers"] <= 255
