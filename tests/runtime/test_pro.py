"""A model of DeepSeek-V4-Pro's shape: its 128 heads in 16 output groups, 384 experts, picks of 1024 rows and compressed
first blocks, with widths and a depth that the emulator runs. Against the float64 reference, and speculative steps against
plain ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bench.model_configs import FLASH, PRO
from reference import deepseek_v4_model
from runtime.checkpoints import write_random_v4
from runtime.decode import same

from deep_gemm import _C, Engine

# Pro's blocks begin with two of HCA, where Flash has windows alone; CSA, then the MTP block's window, follow. Widths are
# the least that the released formats have.
CUT = {"hidden_size": 128, "moe_intermediate_size": 128, "num_hidden_layers": 2, "q_lora_rank": 128}
SMALL = CUT | {"o_lora_rank": 128, "vocab_size": 128, "index_n_heads": 8, "compress_ratios": [128, 4, 0]}
IDS = [int(i) for i in np.random.default_rng(0).integers(2, 128, 8)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = PRO | SMALL | {"num_hash_layers": 1}
    return write_random_v4(tmp_path_factory.mktemp("pro"), released=True, **config)


def test_what_tells_pro_from_flash_is_there() -> None:
    differs = {name: value for name, value in PRO.items() if value != FLASH[name]}
    assert differs.keys() - CUT.keys() == {
        "num_attention_heads", "o_groups", "index_topk", "n_routed_experts", "routed_scaling_factor"
    }  # fmt: skip
    assert not differs.keys() & (SMALL.keys() - CUT.keys())


def test_logits_drafts_and_choices(device: _C.Device, folder: Path) -> None:
    """In the released formats, with the released cache; activations are fp32, as the reference's are wide."""
    engine = Engine(folder, device=device, numerics="fp8_cache", context=64, max_rows=32)
    got = engine.session(window=2).trace_of(IDS, depth=1)
    model = deepseek_v4_model.Model(folder, quantized=True)
    logits, drafts = [], []
    for i, token in enumerate(IDS):
        if i > 0:
            drafts.append(model.draft(model.streams[-1], i - 1, token)[1])
        logits.append(model.feed(token))
    assert abs(got["logits"] - np.stack(logits)).max() < 2e-4
    assert abs(got["mtp.0.logits.1"][1:] - np.stack(drafts)).max() < 2e-4
    assert got["layers.1.picks"].shape[1] == 1024
    for rows, want in zip(got["layers.1.picks"], model.blocks[1].picks, strict=True):
        assert [int(row) for row in rows if row >= 0] == want
    chosen = [block.chosen for block in (*model.blocks, model.mtp)]
    names = ("layers.0", "layers.1", "mtp.0")
    for name, want in zip(names, chosen, strict=True):
        ids = np.sort(got[f"{name}.experts"], axis=1)
        assert np.array_equal(ids[-len(want) :], np.sort(np.stack(want), axis=1)), name
    assert len(np.unique(np.stack(chosen[1]))) > 30


def test_a_speculative_step_is_plain_ones(device: _C.Device, folder: Path) -> None:
    """With released numerics: a right draft, which closes a window of CSA, and a wrong one, which opens the next."""
    engine = Engine(folder, device=device, numerics="released", context=64, max_rows=32)
    plain, session = engine.session(window=1), engine.session(window=3)
    for one in (plain, session):
        one.sync(IDS[:2])
    text = [token for _ in range(2) for token in plain.step().tokens]
    session.force_drafts([text[1], 127 - text[1]])
    step = session.step()
    assert step.tokens == text and step.accepted == 1
    assert same(session, plain)
