"""The command: `python -m deep_gemm bench`, or `python bench` in a checkout. Without a GPU it says so and succeeds."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # the folder of this file would hide nothing but `bench` itself

import click  # noqa: E402

from bench import document  # noqa: E402
from bench import run as runner  # noqa: E402
from deep_gemm import _C  # noqa: E402


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--out",
    default=str(ROOT / "bench" / "out"),
    show_default="bench/out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of results.json, results.csv, bench.txt and the plots.",
)
@click.option(
    "--only", multiple=True, type=click.Choice(runner.SECTIONS), help="A section; give it again for more."
)
@click.option("--quick", is_flag=True, help="Fewer points and rounds, under half a minute: a first look.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0),
    show_default="150, quick 60",
    help="How far into the run the regret section, the last, starts another point; it says which it left out.",
)
@click.option(
    "--deepgemm",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The folder of a built DeepGEMM package (.../deep_gemm): its kernels are timed beside ours.",
)
@click.option(
    "--document",
    "results",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Measure nothing: write docs/performance.md from this results.json; given again, a later file's sections "
    "replace those of the files before.",
)
def main(
    out: Path,
    only: tuple[str, ...],
    quick: bool,
    seconds: float | None,
    deepgemm: Path | None,
    results: tuple[Path, ...],
) -> None:
    """Times every kernel beside cuBLASLt and the measured ceilings, after checking its result.

    `bench model --help`: whole models instead; `bench speculation --help`: speculative against plain decoding.
    """
    if results:
        page = ROOT / "docs" / "performance.md"
        document.write_document(results, page)
        click.echo(f"wrote {page}")
        return
    reason = runner.unavailable()
    if reason is not None:
        click.echo(reason)
        return
    rows = runner.run(out, only, quick, say=click.echo, seconds=seconds, deepgemm=deepgemm)
    if any(row.error for row in rows):
        raise SystemExit(1)


def run(command: click.Command, name: str, arguments: list[str]) -> None:
    """A failure of the library is one line, as of the package's other commands."""
    try:
        command.main(arguments, prog_name=f"python -m deep_gemm {name}")
    except (_C.Error, ValueError, OSError) as error:
        click.ClickException(str(error)).show()
        sys.exit(1)


if sys.argv[1:2] == ["model"]:
    from bench import model

    run(model.main, "bench model", sys.argv[2:])
if sys.argv[1:2] == ["speculation"]:
    from bench import speculation

    run(speculation.main, "bench speculation", sys.argv[2:])
run(main, "bench", sys.argv[1:])
