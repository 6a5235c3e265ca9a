"""Qwen3-MoE: logits against a float64 reference in every stored format, chunks, sessions, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from reference import qwen3_moe
from runtime.checkpoints import QWEN, qwen_tensors, to_fp8, write_checkpoint
from runtime.decode import produce, same

from deep_gemm import _C, Engine

# fp32 arithmetic over two blocks; logits have a standard deviation of about 4.
EXACT_TOLERANCE = 2e-4
PROMPT = [5, 17, 200, 3, 99, 42, 42, 7]

Tensors = dict[str, np.ndarray]
Make = Callable[..., Engine]


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    return qwen_tensors(QWEN)


@pytest.fixture
def make(device: _C.Device, tmp_path: Path) -> Make:
    """make(tensors, numerics, **changes): the engine of a checkpoint of these tensors."""

    def get(
        tensors: Tensors, numerics: str = "exact", context: int = 64, max_rows: int = 32, **changes: Any
    ) -> Engine:
        folder = write_checkpoint(tmp_path / "model", {**QWEN, **changes}, tensors)
        return Engine(folder, device=device, numerics=numerics, context=context, max_rows=max_rows)

    return get


@pytest.fixture
def engine(make: Make, tensors: Tensors) -> Engine:
    return make({name: values.astype(ml_dtypes.bfloat16) for name, values in tensors.items()})


def expected(config: dict[str, Any], tensors: Tensors, ids: list[int]) -> np.ndarray:
    model = qwen3_moe.Model(config, tensors)
    return np.stack([model.feed(token) for token in ids])


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_logits(make: Make, tensors: Tensors, dtype: Any) -> None:
    engine = make({name: values.astype(dtype) for name, values in tensors.items()})
    got = engine.session().logits_of(PROMPT)
    want = expected(QWEN, tensors, PROMPT)
    assert want.std() > 2, "the reference's logits must not be trivial"
    assert abs(got - want).max() < EXACT_TOLERANCE


def test_variants(make: Make, tensors: Tensors) -> None:
    """Weights of experts that do not sum to 1, the embedding as output matrix, keys as transformers 5 writes them."""
    changes = {
        "norm_topk_prob": False,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
        "eos_token_id": [3, 1],
    }
    tied = {name: values for name, values in tensors.items() if name != "lm_head.weight"}
    engine = make(tied, **changes)
    assert engine.eos == 3 and engine.bos is None
    want = expected({**QWEN, **changes, "rope_theta": 5e5}, tied, PROMPT)
    assert abs(engine.session().logits_of(PROMPT) - want).max() < EXACT_TOLERANCE * want.std()


@pytest.mark.parametrize("scale_dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_fp8_weights(make: Make, tensors: Tensors, scale_dtype: Any) -> None:
    stored, meant = to_fp8(tensors, scale_dtype)
    want = expected(QWEN, meant, PROMPT)
    got = make(stored).session().logits_of(PROMPT)
    assert abs(got - want).max() < EXACT_TOLERANCE


def test_released_numerics(make: Make, tensors: Tensors) -> None:
    """bf16 activations, with and without FP8 products: near the exact logits, and not equal to them. Heads of 128
    channels leave the FP8 form of their output themselves."""
    wide = {"head_dim": 128}
    cases = [(tensors, tensors, 0.05, {}), (*to_fp8(tensors, np.float32), 0.12, {})]
    cases.append((*to_fp8(qwen_tensors({**QWEN, **wide}), np.float32), 0.12, wide))
    for checkpoint, meaning, bound, changes in cases:
        got = make(checkpoint, "released", **changes).session().logits_of(PROMPT)
        want = expected({**QWEN, **changes}, meaning, PROMPT)
        error = np.sqrt(((got - want) ** 2).mean()) / want.std()
        assert 1e-4 < error < bound


def test_grouped_experts_keep_a_row_s_bits(make: Make, tensors: Tensors) -> None:
    """FP8 experts on tensor cores: alone, in a batch, and in a chunk with more rows of an expert than a block has."""
    ids = [int(i * i * 7 % 251) + 2 for i in range(96)]
    stored, _ = to_fp8(tensors, np.float32)
    engine = make(stored, "released", context=128, max_rows=96)
    whole, few = engine.session(), engine.session()
    a, b = whole.logits_of(ids), few.logits_of(ids, 5)
    assert np.array_equal(a.view(np.uint32), b.view(np.uint32))
    assert whole.state_digest() == few.state_digest()


@pytest.mark.parametrize("chunk", [1, 3])
def test_chunks_change_no_bit(engine: Engine, chunk: int) -> None:
    whole, parts = engine.session(), engine.session()
    a, b = whole.logits_of(PROMPT), parts.logits_of(PROMPT, chunk)
    assert np.array_equal(a.view(np.uint32), b.view(np.uint32))
    assert whole.state_digest() == parts.state_digest()


def test_a_long_context_takes_bounded_memory(emulator: _C.Device, tmp_path: Path) -> None:
    """Attention of 64 heads over up to 16384 rows leaves 4.3 MB a row of a pass between its kernels: the rows of a pass
    take turns with 256 MiB."""
    config = {**QWEN, "num_hidden_layers": 1, "num_attention_heads": 64, "num_key_value_heads": 8}
    config.update(head_dim=128, max_position_embeddings=16384)
    folder = write_checkpoint(tmp_path, config, qwen_tensors(config))
    engine = Engine(folder, device=emulator, numerics="exact", context=16384, max_rows=96, cache_tokens=512)
    free = emulator.free_memory_bytes
    session = engine.session(restore_points=0)
    assert free - emulator.free_memory_bytes < 300 << 20
    ids = [i * i * 7 % 251 + 2 for i in range(80)]
    whole, few = session.logits_of(ids), engine.session(restore_points=0).logits_of(ids, 33)
    assert np.array_equal(whole.view(np.uint32), few.view(np.uint32))


def test_decoding_equals_prefill(engine: Engine) -> None:
    session, fed = engine.session(), engine.session()
    session.sync(PROMPT)
    text = produce(session, 6, eos=-1)
    assert session.stats["graph_replays"] > 0
    fed.sync(PROMPT + text)
    assert same(session, fed)
    want = expected(QWEN, qwen_tensors(QWEN), PROMPT + text)
    assert text == [int(row.argmax()) for row in want[len(PROMPT) - 1 : -1]]


def test_given_drafts_change_nothing(engine: Engine) -> None:
    """The verify pass over several rows leaves what single tokens leave, whatever was accepted."""
    plain, session = engine.session(), engine.session()
    plain.sync(PROMPT)
    text = produce(plain, 5, eos=-1)
    for accepted in range(4):
        session.sync(PROMPT)
        session.force_drafts([t if i < accepted else (t + 1) % 256 for i, t in enumerate(text[1:4])])
        step = session.step()
        assert step.accepted == accepted and step.tokens == text[: accepted + 1]
        plain.sync(PROMPT + step.tokens)
        assert same(plain, session)


def test_going_back_feeds_one_token(engine: Engine) -> None:
    session, fresh = engine.session(), engine.session()
    session.sync(PROMPT)
    produce(session, 4, eos=-1)
    assert session.sync([*PROMPT[:5], 9]) == 4
    fresh.sync([*PROMPT[:5], 9])
    assert same(session, fresh)
    session.rewind(1)
    fresh.sync(PROMPT[:1])
    assert same(session, fresh)


def test_save_and_load(engine: Engine, tmp_path: Path) -> None:
    session, other = engine.session(), engine.session()
    session.sync(PROMPT)
    produce(session, 3, eos=-1)
    session.save(tmp_path / "s")
    other.load(tmp_path / "s")
    assert same(session, other)
    assert produce(session, 4, eos=-1) == produce(other, 4, eos=-1)
    assert same(session, other)


def test_the_context_can_be_filled(make: Make, tensors: Tensors) -> None:
    session = make(tensors, context=len(PROMPT) + 3).session()
    session.sync(PROMPT)
    assert len(produce(session, 100, eos=-1)) == 3 and session.room == 0
    with pytest.raises(ValueError, match="the context of 11 tokens is full"):
        session.step()


def test_speculation_is_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match="this Qwen3-MoE model has no MTP block that could draft tokens"):
        engine.session(window=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen2_moe"}, "got 'qwen2_moe', expected 'deepseek_v4' or 'qwen3_moe'"),
        ({"model_type": None}, "model_type is missing"),
        ({"num_key_value_heads": 3}, "4 heads over 3 key-value heads, expected a multiple"),
        ({"head_dim": 48}, "head_dim: got 48, expected 32, 64 or 128"),
        ({"attention_bias": True}, "attention_bias: got true, expected false"),
        ({"use_sliding_window": True}, "use_sliding_window: got true, expected false"),
        ({"decoder_sparse_step": 2}, "decoder_sparse_step: got 2, expected 1 to 1"),
        ({"mlp_only_layers": [0]}, "got 1 layers without experts, expected none"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_type: got 'yarn', expected 'default'"),
        ({"num_experts": 9}, "missing: model.layers.0.mlp.experts.8.gate_proj.weight 128x128"),
        ({"num_hidden_layers": 1}, "extra: model.layers.1.self_attn.q_proj.weight BF16 128x128"),
        ({"hidden_size": 160}, "shape: model.norm.weight is 128, expected 160"),
    ],
)
def test_refuses(emulator: _C.Device, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    tensors = {name: values.astype(ml_dtypes.bfloat16) for name, values in qwen_tensors(QWEN).items()}
    folder = write_checkpoint(tmp_path, {**QWEN, **changes}, tensors)
    with pytest.raises(ValueError) as raised:
        Engine(folder, device=emulator)
    if message.startswith(("missing", "extra")):
        assert any(message in problem for problem in _C.Checkpoint(str(folder)).problems())
    else:
        assert message in str(raised.value)


def test_refuses_fp8_of_a_width_that_kernels_do_not_take(emulator: _C.Device, tmp_path: Path) -> None:
    config = {**QWEN, "moe_intermediate_size": 96}
    stored, _ = to_fp8(qwen_tensors(config), np.float32)
    folder = write_checkpoint(tmp_path, config, stored)
    with pytest.raises(
        ValueError, match=r"columns: .*down_proj.weight has 96, expected a multiple of 128 in F8_E4M3"
    ):
        Engine(folder, device=emulator)


def test_refuses_what_kernels_do_not_look_up_or_mix(emulator: _C.Device, tmp_path: Path) -> None:
    """An embedding in FP8; gate and up of an expert in two formats. Down may be stored in another one."""
    plain = {name: v.astype(ml_dtypes.bfloat16) for name, v in qwen_tensors(QWEN).items()}
    stored, _ = to_fp8(qwen_tensors(QWEN), np.float32)

    def with_fp8(part: str) -> dict[str, np.ndarray]:
        return plain | {n: v for n, v in stored.items() if part in n}

    embedding = {
        "model.embed_tokens.weight": plain["model.embed_tokens.weight"].astype(ml_dtypes.float8_e4m3fn)
    }
    for tensors, message in (
        (plain | embedding, "dtype: model.embed_tokens.weight is F8_E4M3, expected F32, BF16, F16 or Q8_0"),
        (
            with_fp8(".0.up_proj"),
            "layers.0.mlp.experts.0.up_proj.weight is F8_E4M3, expected BF16 as model.layers.0.mlp.experts.0.gate",
        ),
        (
            with_fp8(".3.down_proj"),
            "experts.3.down_proj.weight is F8_E4M3, expected BF16 as .*experts.0.down",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            Engine(write_checkpoint(tmp_path, QWEN, tensors), device=emulator)
    engine = Engine(write_checkpoint(tmp_path, QWEN, with_fp8("down_proj")), device=emulator, context=32)
    session = engine.session()
    session.sync(PROMPT)
    assert np.isfinite(session.logits()).all()


def test_refuses_fp8_without_scales(emulator: _C.Device, tmp_path: Path) -> None:
    stored, _ = to_fp8(qwen_tensors(QWEN), np.float32)
    name = "model.layers.0.self_attn.q_proj.weight"
    del stored[name + "_scale_inv"]
    folder = write_checkpoint(tmp_path, QWEN, stored)
    with pytest.raises(ValueError, match=r"missing: .*q_proj.scale or .*q_proj.weight_scale_inv 1x1"):
        Engine(folder, device=emulator)
    with pytest.raises(ValueError, match="'fp8_cache', but Qwen3-MoE keeps keys and values"):
        Engine(
            write_checkpoint(tmp_path / "plain", QWEN, qwen_tensors(QWEN)),
            device=emulator,
            numerics="fp8_cache",
        )
