"""What llama.cpp's ``deci`` and ``openelm`` compute, in plain numpy from a GGUF file.

Written after ``src/models/deci.cpp`` and ``openelm.cpp`` of llama.cpp, and sharing no code with the
export: widths come from the arrays of the metadata. ``deci`` rotates queries and keys in
neighbouring pairs; ``openelm`` has them and the values in one matrix, norms them, and rotates the
two halves of a head.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, dequantize

from evocompress.core.arrays import Floats, Integers

READ = ("deci", "openelm")


class GgufReference:
    """A model of one of these architectures, in float64.

    Args:
        path: The GGUF file.
    """

    def __init__(self, path: Path) -> None:
        reader = GGUFReader(path)
        self.metadata: dict[str, Any] = {
            name: field.contents() for name, field in reader.fields.items()
        }
        self.architecture: str = self.metadata["general.architecture"]
        self.tensors = {
            tensor.name: dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
            for tensor in reader.tensors
        }

    def logits(self, ids: Integers) -> Floats:
        """The logits (S, V) of one sequence of tokens (S,)."""
        assert self.architecture in READ
        hidden = self.tensors["token_embd.weight"][ids]
        heads, keys, channels = (
            self._of_layers(key)
            for key in ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
        )
        assert heads[0] > 0, "llama.cpp divides by the first layer's number of heads"
        assert self.architecture == "deci" or all((*heads, *channels)), "a part that is missing"
        for layer in range(self._of("block_count")):
            assert channels[layer] > 0 or not heads[layer], "an attention without an MLP"
            if heads[layer]:
                hidden = hidden + self._attention(layer, hidden, heads[layer], keys[layer])
            if channels[layer]:
                hidden = hidden + self._mlp(layer, hidden, channels[layer])
        output = self.tensors.get("output.weight", self.tensors["token_embd.weight"])
        return self._norm(hidden, "output_norm.weight") @ output.T

    def _attention(self, layer: int, hidden: Floats, heads: int, keys: int) -> Floats:
        size, length = self._of("attention.key_length"), len(hidden)
        normed = self._norm(hidden, f"blk.{layer}.attn_norm.weight")
        if self.architecture == "openelm":
            fused = self._linear(f"blk.{layer}.attn_qkv", normed).reshape(length, -1, size)
            assert fused.shape[1] == heads + 2 * keys
            q, k, v = np.split(fused, [heads, heads + keys], axis=1)
            q = self._norm(q, f"blk.{layer}.attn_q_norm.weight")
            k = self._norm(k, f"blk.{layer}.attn_k_norm.weight")
        else:
            q = self._linear(f"blk.{layer}.attn_q", normed).reshape(length, heads, size)
            k = self._linear(f"blk.{layer}.attn_k", normed).reshape(length, keys, size)
            v = self._linear(f"blk.{layer}.attn_v", normed).reshape(length, keys, size)
        k, v = (np.repeat(x, heads // keys, axis=1) for x in (self._rotated(k), v))
        scores = np.einsum("qhd,khd->hqk", self._rotated(q), k) / size**0.5
        scores[:, np.triu(np.ones((length, length), dtype=bool), 1)] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", weights, v).reshape(length, -1)
        return self._linear(f"blk.{layer}.attn_output", mixed)

    def _mlp(self, layer: int, hidden: Floats, channels: int) -> Floats:
        normed = self._norm(hidden, f"blk.{layer}.ffn_norm.weight")
        gate = self._linear(f"blk.{layer}.ffn_gate", normed)
        assert gate.shape[1] == channels
        inner = gate / (1 + np.exp(-gate)) * self._linear(f"blk.{layer}.ffn_up", normed)
        return self._linear(f"blk.{layer}.ffn_down", inner)

    def _rotated(self, heads: Floats) -> Floats:
        """Heads (S, N, D) with each pair of elements turned by its position."""
        size = self._of("rope.dimension_count")
        frequencies = self._of("rope.freq_base") ** (-np.arange(0, size, 2) / size)
        frequencies = frequencies / self.tensors.get("rope_freqs.weight", 1.0)
        angles = (np.arange(len(heads))[:, None] * frequencies)[:, None]
        neighbours = self.architecture == "deci"
        shape, axis = ((-1, 2), -1) if neighbours else ((2, -1), -2)
        one, other = np.moveaxis(heads.reshape(*heads.shape[:2], *shape), axis, 0)
        turned = (
            one * np.cos(angles) - other * np.sin(angles),
            one * np.sin(angles) + other * np.cos(angles),
        )
        both: Floats = np.stack(turned, axis=axis).reshape(heads.shape)
        return both

    def _linear(self, name: str, inputs: Floats) -> Floats:
        outputs: Floats = inputs @ self.tensors[f"{name}.weight"].T
        return outputs + self.tensors.get(f"{name}.bias", 0.0)

    def _norm(self, hidden: Floats, name: str) -> Floats:
        epsilon = self._of("attention.layer_norm_rms_epsilon")
        scale = (hidden**2).mean(axis=-1, keepdims=True) + epsilon
        normed: Floats = hidden / np.sqrt(scale) * self.tensors[name]
        return normed

    def _of_layers(self, key: str) -> list[int]:
        """The number of each layer; one number stands for all."""
        found = self._of(key)
        return found if isinstance(found, list) else [found] * self._of("block_count")

    def _of(self, key: str) -> Any:
        return self.metadata[f"{self.architecture}.{key}"]
