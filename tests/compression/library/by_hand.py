"""A sub-layer of a tiny model, taken apart without the library's help."""

import torch
from library_setting import as_rows, brute_force_inputs

from evocompress.compression.criteria import STRUCTURED, Statistics, Structure, reconstructed

# For each family: output, inputs and shared matrices of both sub-layers, each as (path, part,
# parts): a fused matrix has several parts of the given numbers of rows.
HEADS, GROUPS, CHANNELS = 4, 2, 128
QKV = (HEADS, GROUPS, GROUPS)


def plain(*paths):
    return [(path, 0, (1,)) for path in paths]


LLAMA_ATTENTION = (
    "self_attn.o_proj",
    plain("self_attn.q_proj"),
    plain("self_attn.k_proj", "self_attn.v_proj"),
)
PARTS = {
    "llama": (LLAMA_ATTENTION, ("mlp.down_proj", plain("mlp.gate_proj", "mlp.up_proj"), [])),
    "qwen3": (LLAMA_ATTENTION, ("mlp.down_proj", plain("mlp.gate_proj", "mlp.up_proj"), [])),
    "opt": (("self_attn.out_proj", *LLAMA_ATTENTION[1:]), ("fc2", plain("fc1"), [])),
    "phi3": (
        (
            "self_attn.o_proj",
            [("self_attn.qkv_proj", 0, QKV)],
            [("self_attn.qkv_proj", 1, QKV), ("self_attn.qkv_proj", 2, QKV)],
        ),
        ("mlp.down_proj", [("mlp.gate_up_proj", part, (1, 1)) for part in (0, 1)], []),
    ),
    "gpt2": (
        (
            "attn.c_proj",
            [("attn.c_attn", 0, (1, 1, 1))],
            [("attn.c_attn", 1, (1, 1, 1)), ("attn.c_attn", 2, (1, 1, 1))],
        ),
        ("mlp.c_proj", plain("mlp.c_fc"), []),
    ),
}


def part_of(module, values, part, parts):
    """Some rows of a matrix whose rows are in parts of the given proportions."""
    rows = as_rows(module, values)
    unit = len(rows) // sum(parts)
    return rows.split([unit * count for count in parts])[part].contiguous()


class ByHand:
    """What a structured criterion sees of a sub-layer, and what it makes of it."""

    def __init__(self, setting, unit):
        self.model, self.tokens = setting.loaded.model, setting.tokens
        self.criterion = STRUCTURED[setting.config.width_criterion]
        self.reconstruct = setting.config.reconstruct
        block, kind = unit.rsplit(".", 1)
        model_type = self.model.config.model_type
        output, inputs, shared = PARTS[model_type][kind == "mlp"]
        self.output = self.model.get_submodule(f"{block}.{output}")
        self.places = [(f"{block}.{output}", 0, (1,))]
        self.places += [(f"{block}.{path}", *rest) for path, *rest in (*inputs, *shared)]
        self.inputs = brute_force_inputs(self.model, self.tokens, f"{block}.{output}")
        heads = kind == "attention"
        self.groups = (4 if model_type in ("gpt2", "opt") else GROUPS) if heads else 1
        self.size = self.inputs.shape[-1] // HEADS if heads else 1
        self.count = len(inputs)

    def weights(self, gradients=None):
        for name, part, parts in self.places:
            module = self.model.get_submodule(name)
            values = module.weight.data if gradients is None else gradients[f"{name}.weight"]
            yield part_of(module, values, part, parts)

    def structure(self, gradients):
        output, *others = self.weights()
        return Structure(
            output,
            self.size,
            self.groups,
            tuple(others[: self.count]),
            tuple(others[self.count :]),
            tuple(self.weights(gradients)) if gradients else (),
            self.output.bias,
        )

    def statistics(self):
        rows = self.inputs.flatten(0, 1)
        magnitudes = self.inputs.abs().mean(1).square().sum(0).sqrt()
        return Statistics(
            gram=(rows.T @ rows).float(),
            sequences=len(self.tokens),
            tokens=self.tokens.numel(),
            sums=rows.sum(0).float(),
            magnitudes=magnitudes.float(),
        )

    def cuts(self, levels, gradients=None):
        widths = [(one.kv_groups or 1, one.group_heads or one.channels) for one in levels]
        structure, statistics = self.structure(gradients), self.statistics()
        cuts = self.criterion.cut(structure, statistics, widths)
        return reconstructed(structure, statistics, cuts) if self.reconstruct else cuts

    def columns(self, tensors):
        """Inputs of the output matrix that stay."""
        return self._spread(tensors["items"])

    def rows(self, name, tensors):
        """Rows of another matrix (out, in) that stay."""
        found, start = [], 0
        for position, (place, part, parts) in enumerate(self.places):
            if place == name:
                shared = position > self.count
                found.append(start + self._spread(tensors["groups" if shared else "items"]))
                module = self.model.get_submodule(name)
                start += len(part_of(module, module.weight.data, part, parts))
        return torch.cat(found)

    def _spread(self, heads):
        return (heads[:, None] * self.size + torch.arange(self.size)).flatten()

    def error(self, tensors):
        """Relative output error of loaded tensors over all tokens."""
        rows = self.inputs.flatten(0, 1)
        weight = as_rows(self.output, self.output.weight.data).double()
        found = rows[:, self.columns(tensors)] @ as_rows(self.output, tensors["weight"]).double().T
        own = 0 if self.output.bias is None else self.output.bias.double()
        lost = rows @ weight.T + own - found - tensors.get("bias", torch.zeros(1)).double()
        return float(lost.square().sum() / (rows @ weight.T).square().sum())
