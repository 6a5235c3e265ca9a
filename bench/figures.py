"""matplotlib, where it is installed: pictures are optional."""

from __future__ import annotations

from typing import Any


def load_pyplot() -> Any | None:
    """pyplot for files, or None."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return None
    return pyplot
