"""python -m deep_gemm: the command line, see cli.py."""

from deep_gemm.cli import main

main(prog_name="python -m deep_gemm")
