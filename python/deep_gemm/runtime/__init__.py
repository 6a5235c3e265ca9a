"""Whole models over the package's kernels: an Engine holds one, a Session is one timeline of tokens on it.

    engine = deep_gemm.Engine("tiny_v4")
    session = engine.session()
    print(session.complete("The quick test", max_tokens=32))

Speculation changes how fast tokens come, never which; above temperature 0, never how likely each is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deep_gemm import _C
from deep_gemm.models import Tokenizer, model_path
from deep_gemm.paths import path_text
from deep_gemm.runtime.arguments import count, integer, sampling_of, token_ids
from deep_gemm.runtime.batch import Batch
from deep_gemm.runtime.verify import Difference, verify_exact

__all__ = ["Batch", "Completion", "Difference", "Engine", "Pages", "Session", "Step", "verify_exact"]


FinishReason = Literal["eos", "max_tokens", "context"]


class Step(NamedTuple):
    """What one step added: 1 + accepted tokens of a window of 1 + drafted."""

    tokens: list[int]
    drafted: int
    accepted: int


class Completion(str):
    """A text, and why it ends there."""

    finish_reason: FinishReason | None

    def __new__(cls, text: str, finish_reason: FinishReason | None) -> Completion:
        completion = super().__new__(cls, text)
        completion.finish_reason = finish_reason
        return completion


class Pages(NamedTuple):
    """A cache in pages: tokens of each, how many there are, and how many no session has."""

    tokens: int
    total: int
    free: int


class Engine:
    """A loaded model (DeepSeek-V4 or Qwen3-MoE). Immutable; any number of sessions may share it.

    model       a checkpoint's folder, or the name of a shipped model ("tiny_v4")
    device      Device, its name, or None for the default one
    numerics    "released": as the model was released to run: bf16 activations, FP8 products, and for DeepSeek-V4
                FP8 cache rows and an FP4 indexer; "exact": fp32 throughout; "fp8_cache": fp32 with DeepSeek-V4's
                released cache
    context     tokens a session can hold; 0: what the model allows, at most 8192
    max_rows    rows of one forward pass; longer prompts go in chunks of as many. Each session has memory for their
                activations. 0: 256, or 64 on the emulated GPU; no more than the context
    cache_tokens  tokens that all sessions hold together, in pages of 256 of one session each; 0: sixteen
                contexts, or one to sixteen as they fit half of the memory that the weights leave
    progress    called with (done_bytes, total_bytes) while weights are uploaded

    Raises ValueError where it is not such a model (naming what is missing, extra or misshapen), Error of kind
    io for damaged files, of kind driver where memory does not suffice.
    """

    def __init__(
        self,
        model: str | Path = "tiny_v4",
        *,
        device: Any = None,
        numerics: str = "released",
        context: int = 0,
        max_rows: int = 0,
        cache_tokens: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        if progress is not None and not callable(progress):
            raise TypeError(
                f"Engine: progress is {progress!r}, expected a function of (done_bytes, total_bytes); pass one, or None"
            )
        self.path = model_path(model)
        self._engine = _C.Engine(
            str(self.path),
            device=device,
            numerics=numerics,
            context=count("Engine", "context", context),
            max_rows=count("Engine", "max_rows", max_rows),
            cache_tokens=count("Engine", "cache_tokens", cache_tokens),
            progress=progress,
        )
        self._tokenizer: Tokenizer | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """Read at the first use."""
        if self._tokenizer is None:
            self._tokenizer = Tokenizer(self.path if self.path.is_dir() else self.path.parent)
        return self._tokenizer

    @property
    def vocab(self) -> int:
        """Tokens of the vocabulary."""
        return int(self._engine.vocab)

    @property
    def architecture(self) -> str:
        """ "DeepSeek-V4" or "Qwen3-MoE"."""
        return str(self._engine.architecture)

    @property
    def drafts(self) -> bool:
        """Whether the model has an MTP block, which speculative decoding needs."""
        return bool(self._engine.has_mtp)

    @property
    def bos(self) -> int | None:
        """The token that every text begins with; None where texts begin with their own first token."""
        return None if self._engine.bos is None else int(self._engine.bos)

    @property
    def eos(self) -> int:
        """The token that ends a text."""
        return int(self._engine.eos)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` as the beginning of a session."""
        begin = [] if self.bos is None else [self.bos]
        return begin + self.tokenizer.encode(text)

    @property
    def context(self) -> int:
        """Tokens that a session may hold."""
        return int(self._engine.context)

    @property
    def max_rows(self) -> int:
        """Tokens of a pass at most."""
        return int(self._engine.max_rows)

    @property
    def pages(self) -> Pages:
        """The cache that all sessions share."""
        e = self._engine
        return Pages(tokens=int(e.page_tokens), total=int(e.num_pages), free=int(e.free_pages))

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights on the device."""
        return int(self._engine.weight_bytes)

    def session(
        self,
        *,
        window: int | None = None,
        adaptive: bool = False,
        strict: bool = False,
        graphs: bool = True,
        restore_points: int = 2,
    ) -> Session:
        """A new, empty session.

        window          rows of a speculative step, 1 (plain decoding) to 8: the pending token and window - 1 drafts;
                        None: 3 where the model has an MTP block, else 1. ValueError for more than 1 without one
        adaptive        use two rows while second drafts are rarely accepted
        strict          verify drafts one row at a time, in the launches of plain decoding: the same tokens, slower;
                        for a doubt whether rows depend on their number
        graphs          replay a step as one CUDA graph from its third time on
        restore_points  ends of prompts that sync() can go back to without feeding tokens again; fewer where device
                        memory is short
        """
        rows = None if window is None else integer("session", "window", window)
        if rows is not None and rows < 1:
            raise ValueError(
                f"session: got window={rows}, expected 1 (plain decoding) to 8, or None: as the model has it"
            )
        options = {
            "window": rows or 0,
            "adaptive": bool(adaptive),
            "strict": bool(strict),
            "graphs": bool(graphs),
            "restore_points": count("session", "restore_points", restore_points),
        }
        return Session(self, options)

    def batch(self, slots: int) -> Batch:
        """Empty slots, at most max_rows, that are decoded together."""
        return Batch(self, slots)


class Session:
    """One timeline of tokens. Made by Engine.session().

    For one thread at a time: a call raises ValueError while another thread is in one.
    """

    def __init__(self, engine: Engine, options: dict[str, Any]) -> None:
        self.engine = engine
        self._session = _C.Session(engine._engine, **options)
        self._finish_reason: FinishReason | None = None

    @property
    def tokens(self) -> list[int]:
        """All tokens so far, prompt and produced."""
        return list(self._session.tokens)

    @property
    def room(self) -> int:
        """Tokens that still fit in the context."""
        return int(self._session.room)

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the last generate() ended: "eos", "max_tokens", or "context" where the context cut the text short; None
        while it runs, and where it was left before its end."""
        return self._finish_reason

    @property
    def stats(self) -> dict[str, int]:
        """steps, tokens, drafted, accepted, rollbacks, graph_replays since the session was made."""
        return dict(self._session.stats)

    @property
    def last_drafts(self) -> list[int]:
        """What the last step drafted, accepted or not."""
        return list(self._session.last_drafts)

    def sync(self, tokens: Sequence[int], restore_point: bool = True) -> int:
        """Makes the session hold exactly `tokens`, feeding only what its state does not cover already. Their end
        becomes a restore point, unless they are a part of a prompt, which should not displace another:
        restore_point=False.

        Returns how many were kept. ValueError, with nothing changed, for ids outside the vocabulary, for more tokens
        than the context holds, and for more than the engine has pages left for.
        """
        return int(self._session.sync(token_ids("sync", tokens), bool(restore_point)))

    def step(self, budget: int = 1 << 30, eos: int = -1) -> Step:
        """Adds the next token and the drafts that agree with it: at most `budget`, and none after `eos`."""
        rows = min(count("step", "budget", budget), self.room or 1)
        last = integer("step", "eos", eos)
        if not -1 <= last < self.engine.vocab:
            raise ValueError(
                f"step: got eos={last}, expected 0 to {self.engine.vocab - 1}, or -1 for none; correct it"
            )
        return Step(*self._session.step(rows, last))

    def set_sampling(
        self,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int = 0,
    ) -> None:
        """How the next tokens are chosen; temperature 0 takes the most likely one. A token that a rejected draft has
        left to come is drawn already and stays: a change takes effect after it."""
        self._session.set_sampling(**sampling_of("set_sampling", temperature, top_k, top_p, min_p, seed))

    def logits(self) -> NDArray[np.float32]:
        """fp32 [vocab] of the token that follows the last one."""
        return np.frombuffer(self._session.logits(), np.float32)

    def last_logits(self) -> NDArray[np.float32]:
        """fp32 [n, vocab]: what followed each of the last step's n tokens; after sync(), what follows the last one."""
        return np.frombuffer(self._session.last_logits(), np.float32).reshape(-1, self.engine.vocab)

    def logits_of(self, tokens: Sequence[int], chunk: int = 0) -> NDArray[np.float32]:
        """fp32 [len(tokens), vocab]: starts anew and keeps the logits after each token; `chunk` rows at a time."""
        return np.frombuffer(
            self._session.logits_of(token_ids("logits_of", tokens), count("logits_of", "chunk", chunk)),
            np.float32,
        ).reshape(-1, self.engine.vocab)

    def trace_of(self, tokens: Sequence[int], chunk: int = 0, depth: int = 0) -> dict[str, NDArray[Any]]:
        """What a text leaves behind, for comparisons with other implementations; starts anew. [len(tokens), ..] each:

        "logits"            fp32: those that follow each token
        "layers.3.experts"  int32: the experts of each token
        "layers.3.picks"    int32: the compressed rows that the indexer chose, ascending, then -1

        and of the MTP block, for `depth` drafts of each token, in a session that drafts:

        "mtp.0.experts"     int32: row i is made of the streams of token i - 1, and of token i
        "mtp.0.logits.2"    fp32: row i drafts the second token after token i, over the true token i + 1; rows end with
                            the text. Row 0, which has no predecessor, means nothing

        `chunk` rows at a time; a depth above 1 needs chunk=1.
        """
        found = self._session.trace_of(
            token_ids("trace_of", tokens),
            count("trace_of", "chunk", chunk),
            count("trace_of", "depth", depth),
        )
        return {
            name: np.frombuffer(values, np.float32 if floats else np.int32).reshape(-1, width)
            for name, (floats, width, values) in found.items()
        }

    def rewind(self, length: int) -> None:
        """Back to the first `length` tokens; within the last step and to restore points nothing is fed again."""
        self._session.rewind(count("rewind", "length", length))

    def save(self, path: str | Path) -> None:
        """Writes the state to a file that a session of the same model and options continues from: with the same
        set_sampling(), token for token. The session itself stays as it is."""
        self._session.save(path_text("save", path))

    def load(self, path: str | Path) -> None:
        """Continues from a saved state, of a session that drafts like this one (or, like this one, does not).

        Error of kind io for damaged files, ValueError for another model's; then nothing has changed.
        """
        self._session.load(path_text("load", path))

    def state_digest(self) -> str:
        """Equal for two sessions of one engine exactly when everything later tokens depend on is."""
        return str(self._session.state_digest())

    def state_parts(self) -> list[tuple[str, str]]:
        """(name, digest) of each tensor that later tokens depend on."""
        return [(str(name), str(digest)) for name, digest in self._session.state_parts()]

    def damage(self, part: str) -> None:
        """Flips a bit of one tensor of the state; for tests of whatever compares states."""
        self._session.damage(part)

    def force_drafts(self, drafts: Sequence[int]) -> None:
        """Replaces the drafts of the next step, at temperature 0; for tests of acceptance and rollback. At most 7."""
        self._session.force_drafts(token_ids("force_drafts", drafts))

    def generate(self, max_tokens: int, eos: int | None = None) -> Iterator[Step]:
        """Steps until `max_tokens` tokens, `eos` (None: the model's; -1: never) or the end of the context; then
        `finish_reason` says which."""
        end = self.engine.eos if eos is None else eos
        left = count("generate", "max_tokens", max_tokens)
        self._finish_reason = None
        while left > 0 and self.room > 0:
            step = self.step(left, end)
            left -= len(step.tokens)
            yield step
            if step.tokens[-1] == end:
                self._finish_reason = "eos"
                return
        self._finish_reason = "max_tokens" if left == 0 else "context"

    def complete(self, text: str, max_tokens: int = 64) -> Completion:
        """The text that follows `text`, which starts the session anew where it is not its beginning; a str with the
        `finish_reason` of generate()."""
        self.sync(self.engine.encode(text))
        produced = [token for step in self.generate(max_tokens) for token in step.tokens]
        written = self.engine.tokenizer.decode([token for token in produced if token != self.engine.eos])
        return Completion(written, self.finish_reason)
