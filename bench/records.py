"""What a measurement leaves behind: rows with every sample, and the machine they were taken on."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import deep_gemm


@dataclass
class Row:
    """One point of one section. `metrics` are what targets ask about; `samples` are microseconds by variant."""

    section: str
    point: str
    ours_us: float | None = None
    peer_us: float | None = None
    peer: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=dict)
    note: str = ""
    error: str = ""  # of a point that could not be measured or gave a wrong result

    @property
    def measured(self) -> bool:
        """False for a point that this run left out, and says so in its note."""
        return bool(self.metrics or self.error)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def median(samples: list[float]) -> float:
    return statistics.median(samples)


def paired_ratio(peer: list[float], ours: list[float]) -> float:
    """Median over rounds of peer / ours: both of one round met the same clocks."""
    return statistics.median(p / o for p, o in zip(peer, ours, strict=True))


def guarded(section: str, point: str, measure: Callable[[], Row]) -> Row:
    """The row, or one that says why there is none: a failing point loses no other."""
    try:
        return measure()
    except Exception as error:
        lines = f"{type(error).__name__}: {error}".splitlines()
        return Row(section, point, error=" ".join(lines)[:500])


def guarded_all(section: str, points: Iterator[tuple[str, Callable[[], Row]]]) -> list[Row]:
    return [guarded(section, point, measure) for point, measure in points]


def answer_of(*command: str) -> str:
    """What a program prints, in one line; empty where it is missing or fails."""
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def commit_of_sources() -> str:
    """$SOURCE_COMMIT where this tree is a copy without its history, else the checkout's; empty outside one."""
    return os.environ.get("SOURCE_COMMIT") or answer_of(
        "git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"
    )


def machine() -> dict[str, Any]:
    """Device, driver, library versions, commit and date, as they stand in results.json."""
    import torch

    properties = deep_gemm.Device("cuda").properties
    major, rest = divmod(int(properties["driver_version"]), 1000)
    return {
        "device": properties["name"],
        "num_sms": properties["num_sms"],
        "l2_bytes": properties["l2_bytes"],
        "driver": answer_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"),
        "cuda_driver": f"{major}.{rest // 10}",
        "nvrtc": ".".join(map(str, deep_gemm._C.nvrtc_info()["version"])),
        "torch": torch.__version__,
        "cublas": str(torch.version.cuda),
        "python": platform.python_version(),
        "deep_gemm": deep_gemm.__version__,
        "commit": commit_of_sources(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
