"""`python -m deep_gemm bench model` on the emulator: passes run, tables are complete, the arithmetic is right."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from deep_gemm import _C

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench import model, model_configs, model_plot
from runtime.decode import WITHOUT_RACES


@pytest.fixture(scope="module")
def speed() -> _C.ModelSpeed:
    config = model_configs.with_layers("tiny", 2)
    return _C.ModelSpeed(json.dumps(config), device=WITHOUT_RACES, context=256, sequences=2, max_rows=16)


@pytest.mark.parametrize(
    ("kind", "rows"), [("decode", 2), ("verify", 3), ("draft", 1), ("prefill", 9), ("head", 1)]
)
def test_passes_run(speed: _C.ModelSpeed, kind: str, rows: int) -> None:
    assert speed.pass_us(kind, rows, 1) > 0


# Of one token and of a few: nothing of it may be served by the slow kernels that other shapes and numerics take.
DECODE = {
    "embed",
    "hc_few",
    "hc_mix",  # the head
    "hc_post",
    "project_mma",
    "project_pair",
    "attention_rows",
    "index_few",
    "latent_few",
    "quantize",
    "route_activate",
    "project_few_up",
    "sm90_moe_few_down",
    "argmax",
}
VERIFY = DECODE | {"accept_drafts", "compressor_restore"}


@pytest.mark.parametrize(("kind", "rows", "expected"), [("decode", 2, DECODE), ("verify", 3, VERIFY)])
def test_which_kernels_serve_a_pass(speed: _C.ModelSpeed, kind: str, rows: int, expected: set[str]) -> None:
    assert set(speed.kernels(kind, rows)) == expected


@pytest.mark.parametrize(("rows", "expected"), [(1, 3), (3, 3), (4, 0)])
def test_queries_beside_other_work(rows: int, expected: int) -> None:
    """DeepSeek-V4-Flash's rank of queries: up to three rows are normed on the way, beside cache rows and the indexer."""
    config = model_configs.with_layers("tiny", 2) | {"q_lora_rank": 1024}
    speed = _C.ModelSpeed(json.dumps(config), device=WITHOUT_RACES, context=256, sequences=1, max_rows=16)
    names = speed.kernels("verify" if rows > 1 else "decode", rows)
    assert names.count("query_rows") + names.count("query_index") == expected
    assert ("attention_rows" in names) == (expected == 0)


@pytest.mark.parametrize(("rows", "few"), [(7, True), (8, False)])
def test_up_to_seven_rows_mix_streams_in_one_launch(speed: _C.ModelSpeed, rows: int, few: bool) -> None:
    names = set(speed.kernels("verify", rows))
    assert ("hc_few" in names, "hc_sums" in names, "hc_apply" in names) == (few, not few, not few)


def test_launches_are_listed_in_order(speed: _C.ModelSpeed) -> None:
    times = speed.launch_times("head", 1, 1)
    assert [name for name, *_ in times] == ["hc_mix", "project_mma", "argmax"]
    assert all(blocks > 0 and threads % 32 == 0 for _, blocks, threads, _ in times)


@pytest.mark.parametrize(
    ("kind", "rows", "message"),
    [
        ("decode", 3, "3 rows of decoding, expected 1 to 2"),
        ("verify", 9, "window of 9 rows, expected 1 to 8"),
        ("prefill", 17, "chunk of 17 rows, expected 1 to 16"),
        ("draft", 2, "got 2 rows of drafting"),
        ("iterate", 1, "got a step of 1 rows after 1 tokens, expected 2 to 8 rows"),
        ("sleep", 1, "got a pass 'sleep', expected 'decode', 'verify', 'draft', 'iterate', 'prefill' or"),
    ],
)
def test_bad_input(speed: _C.ModelSpeed, kind: str, rows: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        speed.pass_us(kind, rows, 1)


def test_command(tmp_path: Path) -> None:
    arguments = (
        "--config tiny --layers 2 --context 256 --context 64 --batch 2 --spec 2 --accept 0.5 --prefill 5"
        " --repeats 1"
    )
    found = CliRunner().invoke(
        model.main,
        [*arguments.split(), "--ops", "head:1", "--device", WITHOUT_RACES, "--out", str(tmp_path)],
    )
    assert found.exit_code == 0, found.output
    rows = list(csv.DictReader((tmp_path / "model.csv").open()))
    passes = [("decode", "2"), ("verify", "2"), ("speculate", "2"), ("prefill", "5")]
    assert [(row["kind"], row["rows"]) for row in rows] == passes * 2
    assert [row["context"] for row in rows] == ["256"] * 4 + ["64"] * 4
    verify, speculate = rows[1:3]
    assert float(speculate["tokens_a_step"]) == 1.5 and float(speculate["accept"]) == 0.5
    rate = 1.5e6 / float(speculate["model_us"])
    assert float(speculate["tokens_per_s"]) == pytest.approx(rate)
    assert int(speculate["launches"]) > int(verify["launches"]), "drafting is part of it"
    assert all(float(row["model_us"]) > 0 and float(row["percent_of_roofline"]) > 0 for row in rows)
    listed = list(csv.DictReader((tmp_path / "model_ops.csv").open()))
    assert [row["kernel"] for row in listed] == ["hc_mix", "project_mma", "argmax"] * 2


def some_passes() -> list[model.Pass]:
    fields: dict[str, Any] = {"config": "tiny", "layers": 2, "context": 256, "launches": 1, "us": 1.0, "head_us": 0.5,
                              "layer_us": 0.2, "model_us": 1.0, "model_mb": 1.0, "percent_of_roofline": 50.0}  # fmt: skip
    return [
        model.Pass(kind=kind, rows=rows, tokens_per_s=100.0 * rows, **fields)
        for kind, rows in (("decode", 8), ("verify", 3), ("decode", 1))
    ]


def test_plot_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert model_plot.write_plot(tmp_path / "model.png", some_passes()) == model_plot.NO_MATPLOTLIB
    lines = {"decode": ([1, 8], [100.0, 800.0]), "verify": ([3], [300.0])}
    assert model_plot.lines_of(some_passes(), "tokens_per_s") == lines


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib draws the picture")
    assert model_plot.write_plot(tmp_path / "model.png", some_passes()).startswith("wrote ")
    assert (tmp_path / "model.png").read_bytes().startswith(b"\x89PNG")


def test_dialled_acceptance() -> None:
    assert model.shares_of_accepted(3, 0.5) == [0.5, 0.25, 0.25]
    assert model.shares_of_accepted(2, 1) == [0, 1] and model.shares_of_accepted(1, 0.3) == [1]
    tensors = [("mtp.0.ffn.experts.0.w1.weight", 80), ("mtp.0.e_proj.weight", 7), ("layers.0.x", 5)]
    assert model.mtp_bytes(tensors, {"num_experts_per_tok": 2, "n_routed_experts": 8}) == 27


def test_a_step_of_speculation_runs(speed: _C.ModelSpeed) -> None:
    """Three rows after three tokens: two runs of the MTP block, the second over one row, and the verify pass."""
    whole, verify, draft = (speed.kernels(*one) for one in (("iterate", 3), ("verify", 3), ("draft", 1)))
    assert whole == draft + draft + verify
    assert speed.pass_us("iterate", 3, 1, pending=3) > 0
    with pytest.raises(ValueError, match="a step of 3 rows after 4 tokens"):
        speed.pass_us("iterate", 3, 1, pending=4)


def test_bytes_of_flash() -> None:
    """11.2 GB for a token, as counted by hand from the published shapes."""
    config: dict[str, Any] = model_configs.with_layers("flash", 2)
    expert = 3 * 2048 * 4096 * 17 // 32
    tensors = [("layers.0.ffn.experts.0.w1.weight", 256 * expert), ("layers.0.rest", 147_000_000)]
    one = model.layer_bytes(tensors, config | {"num_hidden_layers": 1}, 1, 1, 4096)
    assert one == pytest.approx(147e6 + 6 * expert, rel=0.01)
    # The more rows, the more experts, up to all of them.
    many = model.layer_bytes(tensors, config | {"num_hidden_layers": 1}, 64, 64, 4096)
    assert one < many < 256 * expert + 147e6 + 64 * 1e6
