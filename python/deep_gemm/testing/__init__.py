"""What tests and benchmarks share: comparisons, conditions, timing; `testing.device` runs single kernels."""

from deep_gemm.testing import numeric, utils
from deep_gemm.testing.bench import bench, bench_kineto, suppress_stdout_stderr
from deep_gemm.testing.numeric import assert_bitwise_equal, calc_diff, count_bytes
from deep_gemm.testing.utils import get_arch_major, ignore_env, test_filter

__all__ = [
    "assert_bitwise_equal",
    "bench",
    "bench_kineto",
    "calc_diff",
    "count_bytes",
    "get_arch_major",
    "ignore_env",
    "numeric",
    "suppress_stdout_stderr",
    "test_filter",
    "utils",
]
