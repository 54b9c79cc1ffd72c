import torch

from evocompress.evaluation.heldout import count
from evocompress.testing.tiny import tiny_model


def test_zeros_are_parameters_but_not_nonzeros_and_tied_weights_count_once() -> None:
    model = tiny_model("llama", dtype=torch.bfloat16)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    embedding, blocks, norm = 256 * 64, 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 128), 64
    model.model.layers[0].mlp.up_proj.weight[:5] = 0
    counts = count(model)
    assert counts.parameters == embedding + blocks + norm
    assert counts.weight_bytes == 2 * counts.parameters
    assert counts.nonzeros == counts.parameters - 5 * 64
