"""Write the row of docs/verified-on.md for the JUnit file of a GPU test run: device, driver, numbers of tests, date.

Run by tools/gpu after its tests, into its folder of results; whoever commits the run adds the row to the page.
"""

from __future__ import annotations

import argparse
import subprocess
import xml.etree.ElementTree as ElementTree
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAD = """| device | driver | commit | date | passed | failed | skipped |
|---|---|---|---|---|---|---|
"""


def commit() -> str:
    """The checkout's commit, short; "unknown" outside git."""
    done = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def main() -> None:
    """Write the table's head and one row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("junit", type=Path)
    parser.add_argument("--commit", default=None, help="where the checkout has no git history")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    from deep_gemm import _C

    device = _C.Device("cuda")
    version = device.properties["driver_version"]
    driver = f"CUDA {version // 1000}.{version % 1000 // 10}"
    suite = ElementTree.parse(arguments.junit).getroot().find("testsuite")
    assert suite is not None, f"{arguments.junit} holds no testsuite"
    failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
    skipped = int(suite.get("skipped", 0))
    passed = int(suite.get("tests", 0)) - failed - skipped
    today = datetime.now(timezone.utc).date().isoformat()
    row = f"| {device.name} | {driver} | {arguments.commit or commit()} | {today} | {passed} | {failed} | {skipped} |\n"
    arguments.out.write_text(HEAD + row)


if __name__ == "__main__":
    main()
