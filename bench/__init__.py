"""Speed of every kernel on this GPU, beside cuBLASLt and the measured ceilings: `python -m deep_gemm bench`.

Order of work, and of reading: targets.py (what is asked), timing.py (how time is taken), data.py (operands and
references), one file for each section, run.py (all of them), report.py, plots.py and document.py (what comes out).
"""
