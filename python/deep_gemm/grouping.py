"""Tokens grouped by expert, as the gathered GEMMs read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deep_gemm import _C
from deep_gemm.utils import arrays
from deep_gemm.utils.arrays import Array


@dataclass(frozen=True)
class TokenGroups:
    """The pairs (token, expert) sorted by expert, then by token: a slot for each. All int32, where the ids are.

    `entries` [experts, 4] and `head` [4] are the list of m_grouped_fp8_fp4_gemm_nt_gathered. For slot s of
    `num_slots` (an upper bound: slots beyond the last expert's are not written), `slot_tokens` is the token and
    `slot_pairs` the pair, token * top_k + j. `pair_slots` is the way back, -1 for a pair whose expert is not here.
    `offsets` [experts + 1]: the first slot of each expert.
    """

    entries: Array
    head: Array
    slot_tokens: Array
    slot_pairs: Array
    pair_slots: Array
    offsets: Array

    @property
    def num_slots(self) -> int:
        """Pairs, and so slots at most."""
        return int(self.slot_pairs.shape[0])


def group_tokens(
    topk_ids: Array, num_experts: int, *, first_expert: int = 0, device: Any = None, stream: int | None = None
) -> TokenGroups:
    """Sorts pairs by expert on the device, in one launch; nothing is synchronised, and a graph may capture it.

    topk_ids: int32 [tokens, top_k]; an id outside [first_expert, first_expert + num_experts), -1 for one, takes no
    slot. At most 1024 experts. Products of a layer's gate and up, then down, of h [tokens * top_k, n] in the order of
    the pairs:

        groups = group_tokens(topk_ids, num_experts)
        m_grouped_fp8_fp4_gemm_nt_gathered(
            x, w13, h, groups.entries, groups.head, a_rows=groups.slot_tokens, d_rows=groups.slot_pairs)
        m_grouped_fp8_fp4_gemm_nt_gathered(
            activated, w2, y, groups.entries, groups.head, a_rows=groups.slot_pairs, d_rows=groups.slot_pairs)

    Errors: ValueError, TypeError with what was got and expected.
    """
    arrays.require_array(topk_ids, "group_tokens")
    for name, number in (("num_experts", num_experts), ("first_expert", first_expert)):
        if not hasattr(number, "__index__"):
            raise TypeError(f"group_tokens: {name} is a {type(number).__name__}, expected an int; convert it")
    if len(topk_ids.shape) != 2 or num_experts < 1 or first_expert < 0:
        raise ValueError(
            f"group_tokens: got ids {tuple(topk_ids.shape)}, {num_experts} experts and first_expert {first_expert}, "
            "expected [tokens, top_k], at least one expert and numbers from 0; reshape the ids"
        )
    pairs = int(topk_ids.shape[0] * topk_ids.shape[1])
    slots = _C.moe_slots(pairs, num_experts, 1)

    def empty(*shape: int) -> Array:
        steps = [int(i == len(shape) - 1) or shape[-1] for i in range(len(shape))]
        return arrays.empty_strided(topk_ids, shape, steps, "int32")

    with arrays.on_stream(topk_ids, stream):
        groups = TokenGroups(
            empty(num_experts, 4), empty(4), empty(slots), empty(slots), empty(pairs), empty(num_experts + 1)
        )
        ends = empty(num_experts)
    _C.moe_group(
        topk_ids,
        groups.offsets,
        ends,
        groups.entries,
        groups.head,
        groups.slot_pairs,
        groups.slot_tokens,
        groups.pair_slots,
        first_expert=first_expert,
        device=device,
        stream=stream,
    )
    return groups


__all__ = ["TokenGroups", "group_tokens"]
