"""Qwen3-MoE in float64 numpy, one token at a time, written from the published architecture: the model that the runtime
is compared with. Gets the configuration of config.json and the tensors under the checkpoint's names, scales applied."""

from __future__ import annotations

from typing import Any

import numpy as np

from reference import deepseek_v4 as parts

Array = np.ndarray


class Model:
    def __init__(self, config: dict[str, Any], tensors: dict[str, Array]) -> None:
        self.c = config
        self.w = {name: values.astype(np.float64) for name, values in tensors.items()}
        self.frequencies = parts.frequencies(config["head_dim"], config["rope_theta"])
        self.keys: list[list[Array]] = [[] for _ in range(config["num_hidden_layers"])]
        self.values: list[list[Array]] = [[] for _ in range(config["num_hidden_layers"])]

    def attention(self, layer: int, at: str, x: Array) -> Array:
        c, w, eps = self.c, self.w, self.c["rms_norm_eps"]
        heads, kv_heads, d = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
        keys, values = self.keys[layer], self.values[layer]
        position = len(keys)

        def rotated(name: str, count: int) -> Array:
            y = parts.rms_norm(
                (w[f"{at}{name}_proj.weight"] @ x).reshape(count, d), w[f"{at}{name}_norm.weight"], eps
            )
            return parts.rotate(y, position, self.frequencies, halves=True)

        q = rotated("q", heads)
        keys.append(rotated("k", kv_heads))
        values.append((w[at + "v_proj.weight"] @ x).reshape(kv_heads, d))
        group = heads // kv_heads
        o = [
            parts.attention(
                q[h : h + 1],
                np.stack([k[h // group] for k in keys]),
                np.stack([v[h // group] for v in values]),
                d**-0.5,
                None,
            )[0]
            for h in range(heads)
        ]
        return w[at + "o_proj.weight"] @ np.concatenate(o)

    def experts(self, at: str, x: Array) -> Array:
        c, w = self.c, self.w
        z = w[at + "gate.weight"] @ x
        p = np.exp(z - z.max())
        p /= p.sum()
        chosen = np.argsort(-p, kind="stable")[: c["num_experts_per_tok"]]
        weights = p[chosen] / p[chosen].sum() if c["norm_topk_prob"] else p[chosen]
        y = np.zeros_like(x)
        for e, weight in zip(chosen, weights, strict=True):
            expert = f"{at}experts.{e}."
            gate, up = w[expert + "gate_proj.weight"] @ x, w[expert + "up_proj.weight"] @ x
            y += weight * (w[expert + "down_proj.weight"] @ (gate * parts.sigmoid(gate) * up))
        return y

    def feed(self, token: int) -> Array:
        """Adds a token; returns the logits that follow it."""
        w, eps = self.w, self.c["rms_norm_eps"]
        x = w["model.embed_tokens.weight"][token]
        for i in range(self.c["num_hidden_layers"]):
            at = f"model.layers.{i}."
            x = x + self.attention(
                i, at + "self_attn.", parts.rms_norm(x, w[at + "input_layernorm.weight"], eps)
            )
            x = x + self.experts(
                at + "mlp.", parts.rms_norm(x, w[at + "post_attention_layernorm.weight"], eps)
            )
        head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
        return head @ parts.rms_norm(x, w["model.norm.weight"], eps)
