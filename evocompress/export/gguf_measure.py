"""Counts what a GGUF file really holds, as `evocompress.export.measure` does for safetensors."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from torch import nn

from evocompress.export.gguf_tensors import ROPE_FACTORS

NO_PARAMETERS = (ROPE_FACTORS, "layer_output_scale.weight")
"""What a file holds that is a buffer in transformers, or no tensor."""

CHOICES = "exp_probs_b.bias"
"""What is added to experts' scores to choose some: a buffer with some types."""

CHOICE_BUFFERS = {"e_score_correction_bias", "expert_bias"}
"""What transformers calls such buffers."""

MATRIX = re.compile(
    r"blk\.\d+\.(attn_(qkv|q|k|v|output|q_a|[qkv]_b|kv_a_mqa)|ffn_(gate|up|down)(_s?h?exps?)?|shortconv\.\w+_proj|"
    r"ssm_(in|out|ba|alpha|beta)|attn_gate)\.weight"
)


def gguf_costs(path: Path, dense: nn.Module) -> dict[str, int]:
    """The costs that can be counted in a file, but for what is no parameter of the dense model."""
    from gguf import GGUFReader, dequantize

    buffers = {name.rpartition(".")[2] for name, _ in dense.named_buffers()}
    left_out = (*NO_PARAMETERS, CHOICES) if buffers & CHOICE_BUFFERS else NO_PARAMETERS

    total = body = matrices = zeros = size = 0
    for tensor in GGUFReader(path).tensors:
        if tensor.name.endswith(left_out):
            continue
        count = int(tensor.n_elements)
        total += count
        size += int(tensor.n_bytes)
        body += count if tensor.name.startswith("blk.") else 0
        if MATRIX.fullmatch(tensor.name):
            matrices += count
            weights = dequantize(tensor.data, tensor.tensor_type)
            zeros += count - int(np.count_nonzero(weights))
    return {
        "params": total,
        "body_params": body,
        "nonzeros": total - zeros,
        "body_nonzeros": body - zeros,
        "matrix_nonzeros": matrices - zeros,
        "weight_bytes": size,
    }
