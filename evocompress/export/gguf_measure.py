"""Counts what a GGUF file really holds, as `evocompress.export.measure` does for safetensors."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from evocompress.export.gguf_architectures import ARCHITECTURES, UNEVEN
from evocompress.export.gguf_language import language_tensors, language_type
from evocompress.export.gguf_tensors import ROPE_FACTORS, gguf_name
from evocompress.models.loading import LoadedModel

NO_PARAMETERS = (ROPE_FACTORS, "layer_output_scale.weight")
"""What a file holds that is a buffer in transformers, or no tensor."""

CHOICES = "exp_probs_b.bias"
"""What is added to experts' scores to choose some: a buffer with some types."""

CHOICE_BUFFERS = {"e_score_correction_bias", "expert_bias"}
"""What transformers calls such buffers."""

MATRIX = re.compile(
    r"blk\.\d+\.(attn_(qkv|q|k|v|output|q_a|[qkv]_b|kv_a_mqa)|ffn_(gate|up|gate_up|down)(_s?h?exps?)?|shortconv\.\w+_proj|"
    r"ssm_(in|out|ba|alpha|beta)|attn_gate)\.weight"
)


def gguf_costs(path: Path, loaded: LoadedModel) -> dict[str, int]:
    """The costs that can be counted in a file, but for what is no parameter of the dense model."""
    from gguf import GGUFReader, dequantize

    buffers = {name.rpartition(".")[2] for name, _ in loaded.model.named_buffers()}
    left_out = (*NO_PARAMETERS, CHOICES) if buffers & CHOICE_BUFFERS else NO_PARAMETERS

    staying = _staying(loaded)
    total = body = matrices = zeros = size = 0
    for tensor in GGUFReader(path).tensors:
        if tensor.name.endswith(left_out):
            continue
        count = int(tensor.n_elements)
        total += count
        size += int(tensor.n_bytes)
        inner = tensor.name.startswith("blk.") and tensor.name.split(".", 2)[2] not in staying
        body += count if inner else 0
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


def _staying(loaded: LoadedModel) -> set[str]:
    """The names, within a block, of what counts as outside: it stays without the sub-layers."""
    family, model = loaded.family, loaded.model
    within = tuple(
        f"{family.block_names[index]}.{path}."
        for index in range(len(family.blocks(model)))
        for path in family.at(index).shared
    )
    known = {**UNEVEN, **ARCHITECTURES}[language_type(loaded)]
    return {
        gguf_name(alone, model, known.name).split(".", 2)[2]
        for name, alone, _ in (language_tensors(family, model) if within else ())
        if f"{name}.".startswith(within)
    }
