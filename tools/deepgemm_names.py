"""DeepGEMM's public functions (v2.6.1), by area, and what this package's versions of them refuse.

docs/api.md is made of it: which names exist is looked up when the page is generated.
"""

from __future__ import annotations

FORMS = ("nt", "nn", "tn", "tt")

NAMES: dict[str, list[str]] = {
    "dense": [
        *(
            f"{family}_{form}"
            for family in ("fp8_gemm", "fp8_fp4_gemm", "bf16_gemm", "cublaslt_gemm")
            for form in FORMS
        ),
        "fp8_gemm_nt_skip_head_mid",
    ],
    "grouped along m": [
        *(
            f"m_grouped_{kind}_gemm_{form}_contiguous"
            for kind in ("fp8", "fp8_fp4", "bf16")
            for form in ("nt", "nn")
        ),
        *(f"m_grouped_{kind}_gemm_nt_masked" for kind in ("fp8", "fp8_fp4", "bf16")),
        "fp8_m_grouped_gemm_nt_masked",
        "bf16_m_grouped_gemm_nt_masked",
    ],
    "grouped along k": [
        "k_grouped_fp8_gemm_nt_contiguous",
        "k_grouped_fp8_gemm_tn_contiguous",
        "k_grouped_bf16_gemm_tn_contiguous",
    ],
    "einsum": ["einsum", "fp8_einsum"],
    "attention and indexer": [
        "fp8_mqa_logits",
        "fp8_paged_mqa_logits",
        "fp8_fp4_mqa_logits",
        "fp8_fp4_paged_mqa_logits",
        "get_paged_mqa_logits_metadata",
        "tf32_hc_prenorm_gemm",
    ],
    "mega MoE": [
        "get_symm_buffer_for_mega_moe",
        "transform_weights_for_mega_moe",
        "fp8_fp4_mega_moe",
        "bf16_mega_moe",
    ],
    "layouts": [
        "transform_sf_into_required_layout",
        "get_tma_aligned_size",
        "get_mn_major_tma_aligned_tensor",
        "get_mn_major_tma_aligned_packed_ue8m0_tensor",
        "get_k_grouped_mn_major_tma_aligned_packed_ue8m0_tensor",
        "get_mk_alignment_for_contiguous_layout",
        "set_mk_alignment_for_contiguous_layout",
        "get_theoretical_mk_alignment_for_contiguous_layout",
    ],
    "settings": [
        "set_num_sms",
        "get_num_sms",
        "set_pdl",
        "get_pdl",
        "set_tc_util",
        "get_tc_util",
        "set_ignore_compile_dims",
        "set_block_size_multiple_of",
        "init",
    ],
}

# What exists and takes less than its name says.
LIMITS: list[tuple[str, str]] = [
    (
        "`*_nn`, `*_tn`, `*_tt` of FP8",
        "turn the operands' views around and call `*_nt`, which wants both operands contiguous along K, as Hopper's "
        "FP8 instructions do: a tensor that is contiguous the other way raises ValueError (BF16 takes both orders)",
    ),
    (
        "`fp8_fp4_*`",
        "`b` as (int8 codes, scales of 32) is packed anew in each call, which waits for the device: "
        "`pack_fp4_weights`, called once, makes what they read at full speed, and is the matrix [n, k] whatever "
        "the letters of a form say. FP4 activations (int8 `a`) raise an "
        "error on sm_90a",
    ),
    ("packed UE8M0 scales (int32)", "raise TypeError on sm_90a: pass the fp32 scales"),
    (
        "`deep_gemm.utils.dist`",
        "not here: `init_dist`, `uneven_all_gather` and `dist_print` start the processes of the mega MoE's test; no "
        "operation here spans processes",
    ),
    ("`set_mk_alignment_for_contiguous_layout`", "raises ValueError for anything but 128"),
]
