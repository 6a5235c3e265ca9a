"""What the operations do besides multiplying: C, recipes, settings, NaN, threads."""

from __future__ import annotations

import os
import threading
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from gemm_cases import Case, check_close, poisoned, random_operand, run_dense
from reference import gemm as reference
from reference.gemm import Scaled

import deep_gemm
from deep_gemm import _C
from deep_gemm.demo.arrays import put, take

BF16 = ml_dtypes.bfloat16
FP8 = ml_dtypes.float8_e4m3fn


def operands(m: int, n: int, k: int, seed: int = 0) -> tuple[Any, Any]:
    """(values, scales) of a and b, on the host."""
    rng = np.random.default_rng(seed)
    case = Case(m, n, k)
    a, b = random_operand(rng, (m, k), case, 1), random_operand(rng, (n, k), case, 128)
    return (a.values, a.scales), (b.values, b.scales)


def placed(device: Any, pair: Any) -> Any:
    return tuple(put(device, part) for part in pair)


def test_c_beside_d(device: Any) -> None:
    """C may be a tensor of its own; it is read, not written."""
    a, b = operands(20, 72, 256)
    rng = np.random.default_rng(1)
    c = rng.standard_normal((20, 72)).astype(np.float32)
    held, d = put(device, c.copy()), put(device, poisoned((20, 72), Case(20, 72, 256, d="fp32")))
    plain = put(device, poisoned((20, 72), Case(20, 72, 256, d="fp32")))
    deep_gemm.fp8_gemm_nt(placed(device, a), placed(device, b), d, held, device=device)
    deep_gemm.fp8_gemm_nt(placed(device, a), placed(device, b), plain, device=device)
    assert (take(held) == c).all()
    np.testing.assert_allclose(take(d), take(plain) + c, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(
    "recipes",
    [
        {},
        {"recipe": (1, 128, 128)},
        {"recipe_a": (1, 128), "recipe_b": (128, 128)},
        {"recipe": [1, 128, 128], "compiled_dims": "mn", "disable_ue8m0_cast": True},
    ],
)
def test_recipes_that_mean_the_same(device: Any, recipes: dict[str, Any]) -> None:
    a, b = operands(20, 72, 256)
    results = []
    for keywords in ({}, recipes):
        d = put(device, poisoned((20, 72), Case(20, 72, 256)))
        deep_gemm.fp8_gemm_nt(placed(device, a), placed(device, b), d, device=device, **keywords)
        results.append(take(d))
    assert (results[0].view(np.uint16) == results[1].view(np.uint16)).all()


def test_list_pairs_and_names(device: Any) -> None:
    """Pairs may be lists; DeepGEMM's other names are the same functions."""
    a, b = operands(4, 64, 128)
    case = Case(4, 64, 128)
    d = put(device, poisoned((4, 64), case))
    deep_gemm.fp8_fp4_gemm_nt(a=list(placed(device, a)), b=list(placed(device, b)), d=d, device=device)
    check_close(take(d), reference.gemm(Scaled(*a, 1), Scaled(*b, 128)), case)
    assert deep_gemm.fp8_m_grouped_gemm_nt_masked is deep_gemm.m_grouped_fp8_gemm_nt_masked
    assert deep_gemm.bf16_m_grouped_gemm_nt_masked is deep_gemm.m_grouped_bf16_gemm_nt_masked


@pytest.mark.parametrize("which", ["a", "b"])
def test_nan_scales_reach_their_products_and_no_others(device: Any, which: str) -> None:
    (a, scale_a), (b, scale_b) = operands(70, 264, 384)
    expected = np.zeros((70, 264), bool)
    if which == "a":
        scale_a[3, 1] = np.nan
        expected[3] = True
    else:
        scale_b[1, 2] = np.nan
        expected[:, 128:256] = True
    d = put(device, np.zeros((70, 264), BF16))
    left, right = placed(device, (a, scale_a)), placed(device, (b, scale_b))
    deep_gemm.fp8_gemm_nt(left, right, d, device=device)
    assert (np.isnan(take(d).astype(np.float32)) == expected).all()


def test_num_sms_limits_the_grid(device: Any) -> None:
    a, b = operands(512, 512, 128)
    case, grids = Case(512, 512, 128), {}
    try:
        for num_sms in (0, 4, 3, 1):
            deep_gemm.set_num_sms(num_sms)
            assert deep_gemm.get_num_sms(device) == (num_sms or device.num_sms)
            d = put(device, poisoned((512, 512), case))
            deep_gemm.fp8_gemm_nt(placed(device, a), placed(device, b), d, device=device)
            plan = deep_gemm.last_plan()
            assert plan is not None
            grids[num_sms] = plan["grid_blocks"]
            check_close(take(d), reference.gemm(Scaled(*a, 1), Scaled(*b, 128)), case)
    finally:
        deep_gemm.set_num_sms(0)
    assert grids[0] > 4 and [grids[num_sms] for num_sms in (4, 3, 1)] == [
        4,
        3,
        1,
    ]  # one block for each, for as many as there are
    assert deep_gemm.get_num_sms(device) == device.num_sms


def test_settings_keep_what_they_are_told() -> None:
    assert deep_gemm.get_pdl()
    try:
        deep_gemm.set_pdl(False)
        assert not deep_gemm.get_pdl()
    finally:
        deep_gemm.set_pdl(True)
    deep_gemm.set_tc_util(80)
    assert deep_gemm.get_tc_util() == 80
    deep_gemm.set_tc_util(0)  # DeepGEMM's "not set"
    assert deep_gemm.get_tc_util() == 100
    deep_gemm.set_tc_util(100)
    deep_gemm.set_ignore_compile_dims(True)
    deep_gemm.set_block_size_multiple_of((16, 32))
    deep_gemm.init("", "")
    assert deep_gemm.get_mk_alignment_for_contiguous_layout() == 128
    assert deep_gemm.get_theoretical_mk_alignment_for_contiguous_layout(20) == 128
    deep_gemm.set_mk_alignment_for_contiguous_layout(128)


def test_threads_get_their_own_results(device: Any) -> None:
    """Four threads, different problems, racing through plans, compilation and launches."""
    cases = [Case(8 * (i + 1), 64, 128 * (i % 3 + 1)) for i in range(4)]
    failures: list[BaseException] = []

    def work(case: Case) -> None:
        try:
            for seed in range(2):
                run_dense(device, case, seed)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(case,)) for case in cases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_bytes_of_another_type(device: Any) -> None:
    """A framework without FP8 passes bytes and says what they mean."""
    (a, scale_a), b = operands(8, 64, 128)
    results = []
    for values in (put(device, a), None):
        if values is None:
            if not device.emulated:
                pytest.skip("put() has no uint8 tensors")
            values = deep_gemm.view_as(a.view(np.uint8), "fp8_e4m3")
        d = put(device, poisoned((8, 64), Case(8, 64, 128)))
        deep_gemm.fp8_gemm_nt((values, put(device, scale_a)), placed(device, b), d, device=device)
        results.append(take(d))
    assert (results[0].view(np.uint16) == results[1].view(np.uint16)).all()


def test_a_forked_child_starts_over(emulator: Any) -> None:
    """Launchers, devices and caches of the parent are not the child's."""
    run_dense(emulator, Case(8, 64, 128))
    process = os.fork()
    if process == 0:
        try:
            run_dense(_C.Device("emulator:sm_90a,sms=8"), Case(8, 64, 128))
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitpid(process, 0)[1] == 0


def test_plans_are_values() -> None:
    plan = deep_gemm.plan("gemm m=64 n=7168 k=2048", "90a:132")
    assert plan["spec"].why_illegal is None
    assert plan["spec"] == eval(repr(plan["spec"]), {"GemmSpec": deep_gemm.GemmSpec})
    assert hash(plan["spec"]) == hash(plan["spec"].replace())
    assert plan["spec"].replace(stages=2).stages == 2
    assert "chosen" in deep_gemm.explain("gemm m=64 n=7168 k=2048", "90a:132")
    assert plan["spec"] in deep_gemm.enumerate_specs("gemm m=64 n=7168 k=2048", "90a:132")


def test_plans_in_words_use_the_sms_that_calls_use() -> None:
    """What is warmed up is what a call will want."""
    problem = "gemm m=512 n=4096 k=7168"
    deep_gemm.set_num_sms(64)
    try:
        limited = set(deep_gemm.enumerate_specs(problem, "90a:132"))
        assert deep_gemm.plan(problem, "90a:132")["grid_blocks"] <= 64
    finally:
        deep_gemm.set_num_sms(0)
    assert limited == set(deep_gemm.enumerate_specs(f"{problem} num_sms=64", "90a:132"))
    assert limited != set(deep_gemm.enumerate_specs(problem, "90a:132"))


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("n=7168 k=2048", [0]),
        ("n=576 k=7168 d=fp32", [0]),
        ("n=4096 k=4096 a=bf16", [0]),
        ("n=4096 k=4096 d=fp32 scale_b=per_row_128 accumulate", [0]),
        ("n=131 k=208", [0]),
        ("contiguous groups=8 n=4096 k=7168", [0]),
        ("psum groups=8 n=4096 k=7168", [0, 64]),
        ("masked groups=8 n=4096 k=7168", [1, 16, 200]),
    ],
)
def test_every_plan_is_among_those_that_are_warmed_up(form: str, expected: list[int]) -> None:
    sizes = sorted({*range(1, 40, 3), *(64, 65, 128, 129), *range(200, 4097, 433), 4096})
    if "groups" in form:
        sizes = [128, 256, 1024, 4096]
    specs = set(deep_gemm.enumerate_specs(f"gemm m=4096 {form}", "90a:132"))
    for m in sizes:
        for mean in expected:
            problem = f"gemm m={m} {form}" + (f" expected_m={mean}" if mean else "")
            assert deep_gemm.plan(problem, "90a:132")["spec"] in specs, problem


def test_warmup_builds_what_calls_need(emulator: Any) -> None:
    count, seconds = deep_gemm.warmup(["gemm m=8 n=64 k=128"], emulator)
    assert count == len(deep_gemm.enumerate_specs("gemm m=8 n=64 k=128", emulator)) > 0
    assert seconds >= 0
