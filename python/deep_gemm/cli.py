"""The command line: one function for each command, which calls a function of the library and prints.

Thin: each command calls a function and prints. Nothing here is imported by `import deep_gemm`. A failure of the library
is one line on stderr and status 1.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn
from rich.table import Table

import deep_gemm
from deep_gemm import _C
from deep_gemm.cli_cache import cache, sentence
from deep_gemm.cli_text import INTERRUPTED, chat, generate
from deep_gemm.paths import require_folder

PROBLEM_HELP = """\b
A problem is one line, in the syntax that explain and the logs print:
  gemm m=64 n=7168 k=2048
  gemm m=64 n=7168 k=2048 a=fp8_e4m3 d=bf16
  gemm masked groups=8 m=512 expected_m=40 n=4096 k=7168
  gemm contiguous groups=8 m=4096 n=4096 k=7168

\b
It may also say psum (contiguous, by ends of groups), accumulate, unaligned_d,
ab=bf16, d=fp32, scale_b=per_row_128, a_major=mn, b_major=mn, num_sms=64.
"""
OTHER_PROBLEMS = """

\b
Also of the other families:
  linear w=mxfp4 m=512 n=14336 k=4096
  fp4_gemm gathered groups=256 m=384 n=4096 k=4096
"""


class Commands(click.Group):
    """Turns the library's errors into one clear line."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("\ninterrupted", err=True)
            raise SystemExit(INTERRUPTED) from None
        except BrokenPipeError:
            raise  # click ends quietly
        except MemoryError as error:
            raise click.ClickException(f"{error or 'no memory is left'}; ask for less") from error
        except (deep_gemm.Error, ValueError, OSError) as error:
            raise click.ClickException(str(error)) from error


def complete(problem: str) -> str:
    """The problem, or one line that names the sizes it lacks; a word that is not known first."""
    given = {word.split("=")[0] for word in problem.split()}
    missing = [key for key in ("m", "n", "k") if key not in given]
    if missing:
        deep_gemm.explain(" ".join([problem, *(f"{key}=128" for key in missing)]), "90a:132", rows=1)
        raise click.ClickException(
            f"problem: got '{problem}' without {' and '.join(key + '=' for key in missing)}; "
            "expected m=, n= and k=, as in 'gemm m=64 n=7168 k=2048'"
        )
    return problem


def console() -> Console:
    """Colours and the terminal's width for people, plain wide text for pipes."""
    return Console() if sys.stdout.isatty() else Console(width=120, no_color=True, highlight=False)


def frame() -> box.Box:
    return box.ROUNDED if sys.stdout.isatty() else box.ASCII


def device_label(device: _C.Device) -> str:
    """'NVIDIA H200' or 'emulator:sm_90a'."""
    return f"emulator:sm_{device.arch}" if device.emulated else device.name


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(deep_gemm.__version__, prog_name="deep_gemm")
def main() -> None:
    """Low-precision matrix kernels, compiled while your program runs, on a GPU or an emulated one."""


main.add_command(cache)
main.add_command(generate)
main.add_command(chat)

DEVICE_HELP = "cuda, cuda:1, emulator:sm_90a; default: $DG_DEVICE, else a GPU, else the emulator."
device_option = click.option("--device", default="", help=DEVICE_HELP)
plan_device_option = click.option(
    "--device",
    default="",
    help=f"{DEVICE_HELP} Or 90a:132, an architecture and its SMs, for a GPU that is not here.",
)


@main.command(short_help="An MoE layer in FP8 and a small model, checked.")
@click.argument("text", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--tokens", type=click.IntRange(1), help="Tokens taken from the text.")
@click.option("--experts", type=click.IntRange(1), help="Number of experts.")
@click.option("--top-k", type=click.IntRange(1), help="Experts of each token.")
@click.option("--hidden", type=click.IntRange(128), help="Width of a token, K; a multiple of 128.")
@click.option("--outputs", type=click.IntRange(128), help="Outputs of an expert, N; a multiple of 128.")
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Seed of embedding, router and weights.",
)
@click.option(
    "--part",
    type=click.Choice(["all", "layer", "text"]),
    default="all",
    show_default=True,
    help="The layer, the model's text, or both.",
)
@click.option("--prompt", default=None, help="What the model continues.")
@click.option("--new-tokens", default=24, show_default=True, type=click.IntRange(1), help="Tokens it writes.")
@device_option
def demo(
    text: Path | None,
    seed: int,
    part: str,
    prompt: str | None,
    new_tokens: int,
    device: str,
    **sizes: int | None,
) -> None:
    """Sends a TEXT's tokens through a mixture-of-experts layer in FP8 (part layer), then lets a small trained model
    write text, plainly and speculatively (part text). Both are checked.

    TEXT is any file; the default is the project's README. Sizes that are not given depend on the device.
    """
    from deep_gemm.demo import generate, run

    if prompt == "":
        raise click.ClickException(
            "demo: got an empty prompt, expected text; leave --prompt out for the usual one"
        )
    target = _C.Device(device)
    if part != "text" and not run(text, device=target, console=console(), seed=seed, sizes=sizes):
        raise click.ClickException("the result is outside its error bound")
    given = generate.PROMPT if prompt is None else prompt
    if part != "layer" and not generate.run(
        target, console(), prompt=given, count=new_tokens, model="tiny_v4"
    ):
        raise click.ClickException("speculative decoding differs from plain decoding")


@main.command(short_help="What a checkpoint holds, and whether it fits.")
@click.argument("path")
@device_option
def inspect(path: str, device: str) -> None:
    """Shows what the checkpoint at PATH holds, what is wrong with it, and whether it fits the device."""
    from deep_gemm.models.inspect import report

    if not report(path, _C.Device(device), console()):
        raise click.ClickException("the checkpoint is not as its config.json asks")


@main.command(short_help="Packs a checkpoint's FP4 weights, as a trial.")
@click.argument("path")
@click.option("--form", help="mx_e4m3, mx_e5m2, nv_single or nv_exact; by default the smaller, or nv_single.")
def fp4(path: str, form: str | None) -> None:
    """Packs the FP4 weights of the checkpoint at PATH, to see how long that takes and what it finds; keeps nothing."""
    from deep_gemm.models import model_path

    folder = model_path(path)
    found = deep_gemm.Fp4Report()
    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console()) as bar:
        task = bar.add_task("packing", total=None)

        def progress(done: int, total: int, name: str) -> None:
            bar.update(task, completed=done, total=total, description=name or "packed")

        for _ in deep_gemm.pack_fp4_checkpoint(folder, form=form, report=found, progress=progress):
            pass
    click.echo(
        f"{found.layers} layers, {found.stored_bytes / 1e6:.1f} MB stored, {found.packed_bytes / 1e6:.1f} MB packed\n"
        f"{found.rows_beyond} of {found.rows} rows need more scales than one run holds: {found.extra_runs} extra runs; "
        f"the widest row spans {found.widest} octaves\n"
        f"largest error of a weight: {100 * found.worst_error:.2f} %"
    )


@main.command(
    short_help="The plan chosen for a problem, and why.",
    help="Shows the plan chosen for PROBLEM, its cost, and what else was considered.\n\n"
    + PROBLEM_HELP
    + OTHER_PROBLEMS,
)
@click.argument("problem", nargs=-1, required=True)
@click.option("--rows", default=12, show_default=True, type=click.IntRange(1), help="Candidates to show.")
@plan_device_option
def explain(problem: tuple[str, ...], rows: int, device: str) -> None:
    click.echo(deep_gemm.explain(complete(" ".join(problem)), device=device or None, rows=rows).rstrip())


@main.command(short_help="Device, compiler, cache and variables.")
@click.option("--name", "name_only", is_flag=True, help="Print only the name of the device.")
@device_option
def env(name_only: bool, device: str) -> None:
    """Shows the device, the compiler, the cache and every environment variable; exit status 1 without a compiler."""
    target = _C.Device(device)
    if name_only:
        click.echo(device_label(target))
        return
    facts = Table(show_header=False, box=None)
    facts.add_row("deep_gemm", deep_gemm.__version__)
    facts.add_row("device", f"{device_label(target)}, {target.num_sms} SMs")
    works = True
    try:
        nvrtc = _C.nvrtc_info()
        facts.add_row("NVRTC", ".".join(map(str, nvrtc["version"])) + f", {nvrtc['path']}")
        if nvrtc["remark"]:
            facts.add_row("", nvrtc["remark"])
    except deep_gemm.Error as error:
        facts.add_row("NVRTC", str(error))
        works = False
    entries = _C.cache_list()
    facts.add_row("cache", sentence(entries))
    if target.emulated:
        threads = env_value("DG_EMULATOR_THREADS")
        facts.add_row("emulator", f"{os.cpu_count() if threads in ('', '0') else threads} threads")
    table = Table("variable", "value", "meaning", box=frame())
    for row in _C.env():
        table.add_row(row["name"], shown(row), row["meaning"])
    out = console()
    out.print(facts)
    out.print(table)
    for name in _C.unknown_env_names():
        click.echo(f"warning: {name} is set, but deep_gemm has no such variable", err=True)
    if not works:
        raise SystemExit(1)


def env_value(name: str) -> str:
    return next(str(row["value"]) for row in _C.env() if row["name"] == name)


def shown(row: dict[str, Any]) -> str:
    """What is in force: '4', '4 (default)', or 'not set'."""
    if row["is_set"]:
        return str(row["value"])
    return f"{row['value']} (default)" if row["value"] else "not set"


def with_bar(build: Callable[[Callable[[int, int, str], None]], Any]) -> Any:
    """What build(progress) returns; a bar shows how far it is."""
    with Progress(console=console()) as bar:
        task = bar.add_task("compiling", total=None)
        return build(
            lambda done, total, kernel: bar.update(task, completed=done, total=total, description=kernel)
        )


def checked(problems: tuple[str, ...], device: str) -> list[str]:
    """The problems; an error in one comes before anything is drawn or compiled."""
    wanted = [complete(problem) for problem in problems]
    for problem in wanted:
        deep_gemm.plan(problem, device=device or None)
    return wanted


@main.command(
    short_help="Compiles what problems need, in parallel.",
    help="Compiles, in parallel, every kernel that PROBLEMS can need.\n\n" + PROBLEM_HELP,
)
@click.argument("problems", nargs=-1, required=True)
@device_option
def warmup(problems: tuple[str, ...], device: str) -> None:
    wanted = checked(problems, device)
    count, seconds = with_bar(
        lambda progress: deep_gemm.warmup(wanted, device=device or None, progress=progress)
    )
    click.echo(f"{count} kernels ready in {seconds:.2f} s")


@main.command(
    short_help="Compiles what problems need into a file.",
    help="Compiles every kernel that PROBLEMS can need into the file PATH, for machines without NVRTC.\n\n"
    "The folder of PATH must exist.\n\n" + PROBLEM_HELP,
)
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("problems", nargs=-1, required=True)
@plan_device_option
def bundle(path: Path, problems: tuple[str, ...], device: str) -> None:
    wanted = checked(problems, device)
    require_folder("bundle", path)
    count = with_bar(
        lambda progress: deep_gemm.write_bundle(path, wanted, device=device or None, progress=progress)
    )
    click.echo(f"{count} kernels, {path.stat().st_size / 1024:.0f} KiB; use them with DG_JIT_BUNDLES={path}")


@main.command(
    short_help="Times the kernels on a GPU.",
    context_settings={"ignore_unknown_options": True},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> None:
    """Times the kernels and their peers on a GPU: bench/ of the source checkout, which also has the help."""
    folder = Path(__file__).resolve().parents[2] / "bench"
    if not (folder / "__main__.py").is_file():
        raise click.ClickException(
            f"got no benchmarks at {folder}, expected a source checkout; run it from there"
        )
    raise SystemExit(subprocess.run([sys.executable, str(folder), *arguments], check=False).returncode)
