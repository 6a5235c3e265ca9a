"""Conversations as token ids, the way each architecture was trained to see them.

What people write is encoded as plain text: the name of a special token inside a message is not that token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deep_gemm.models import Tokenizer

__all__ = ["TEMPLATES", "Message", "Template", "encode_chat"]


@dataclass(frozen=True)
class Message:
    """role: "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True)
class Template:
    """Markup around messages, and what opens an answer."""

    before: dict[str, str]  # role -> markup
    after: dict[str, str]
    answer: str  # opens the answer that is asked for, without thinking
    thinking: str  # the same, with thinking


TEMPLATES = {
    # Closed thinking stands before an earlier answer too; the begin-of-text token is the engine's.
    "DeepSeek-V4": Template(
        before={"system": "", "user": "<｜User｜>", "assistant": "<｜Assistant｜></think>"},
        after={"system": "", "user": "", "assistant": "<｜end▁of▁sentence｜>"},
        answer="<｜Assistant｜></think>",
        thinking="<｜Assistant｜><think>",
    ),
    "Qwen3-MoE": Template(
        before={role: f"<|im_start|>{role}\n" for role in ("system", "user", "assistant")},
        after=dict.fromkeys(("system", "user", "assistant"), "<|im_end|>\n"),
        answer="<|im_start|>assistant\n<think>\n\n</think>\n\n",
        thinking="<|im_start|>assistant\n",
    ),
}


def encode_chat(
    tokenizer: Tokenizer, template: Template, messages: Sequence[Message], *, thinking: bool = False
) -> list[int]:
    """The conversation and the beginning of the next answer, without the token that begins every text.

    ValueError for an unknown role.
    """
    tokens: list[int] = []
    for message in messages:
        if message.role not in template.before:
            raise ValueError(
                f"chat: got role '{message.role}', expected one of {', '.join(template.before)}; "
                "pass one of them"
            )
        tokens += tokenizer.encode(template.before[message.role])
        tokens += tokenizer.encode(message.content, plain=True)
        tokens += tokenizer.encode(template.after[message.role])
    return tokens + tokenizer.encode(template.thinking if thinking else template.answer)
