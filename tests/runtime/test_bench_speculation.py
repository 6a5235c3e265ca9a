"""`bench speculation`: that its tables count what happened, and that a difference does not pass."""

from __future__ import annotations

from bench import speculation
from runtime.decode import Load

from deep_gemm.cli_text import Stats


def test_tables(load: Load) -> None:
    engine = load()
    plain, drafted = speculation.exact(engine, 1, 3, (1, 3))
    assert (plain.mismatches, drafted.mismatches) == (0, 0)
    assert plain.stats.tokens == drafted.stats.tokens == 3 and plain.stats.steps == 3
    assert plain.stats.reached[0] == 0 < drafted.stats.reached[0]
    (forced,) = speculation.forced(engine, (2,), phases=2)
    assert forced.mismatches == 0 and forced.stats.reached[0] == forced.stats.steps == 4
    assert len(speculation.Line.TITLES) == len(forced.values())


def test_a_difference_is_counted(load: Load) -> None:
    prompt = speculation.tokens_of(load(), 0, 3)
    plain = speculation.decode_plainly(load().session(window=1), prompt, 2)
    wrong = speculation.Plain(plain.tokens, [*plain.digests[:-1], "0"])
    session = load().session(window=2)
    assert speculation.follow(session, prompt, plain, Stats(0, 0))
    assert not speculation.follow(session, prompt, wrong, Stats(0, 0))


def test_prompts() -> None:
    lengths = {speculation.length_of(i) for i in range(100)}
    assert lengths >= {*speculation.LENGTHS, *speculation.LONG} and len(speculation.texts()) == 100
