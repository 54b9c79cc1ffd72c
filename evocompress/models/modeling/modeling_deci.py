"""Decoders with ``block_configs``, as NVIDIA's Nemotron-NAS has them. Ships inside checkpoints.

vLLM reads such a config with its own class of the same name, ``DeciLMForCausalLM``: every layer has
the model's number of query heads, ``n_heads_in_group`` of them to a key-value head.
"""
# mypy: disable-error-code="no-untyped-call"

from types import SimpleNamespace
from typing import Any

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from .layers import LayerConfig, NoAttention, NoMLP

STAND_INS: dict[str, dict[str, type[nn.Module]]] = {
    "attention": {"input_layernorm": nn.Identity, "self_attn": NoAttention},
    "ffn": {"post_attention_layernorm": nn.Identity, "mlp": NoMLP},
}


def _entry(block: Any) -> SimpleNamespace:
    """A block's settings with attributes, which is how vLLM reads them."""
    if isinstance(block, SimpleNamespace):
        return block
    return SimpleNamespace(**{name: SimpleNamespace(**part) for name, part in block.items()})


def _plain(entry: Any) -> dict[str, dict[str, Any]]:
    return {name: dict(vars(part)) for name, part in vars(entry).items()}


@strict
class DeciLMConfig(LlamaConfig):
    """Llama's config with the settings of every block.

    ``block_configs[i]`` has ``attention`` (``no_op``, ``n_heads_in_group``) and ``ffn`` (``no_op``,
    ``intermediate_size``). ``qkv_bias`` is about the matrices of queries, keys and values,
    ``attention_bias`` about the output's, as vLLM has it.
    """

    model_type = "nemotron-nas"
    block_configs: list[Any] | None = None
    qkv_bias: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.qkv_bias = self.qkv_bias or self.attention_bias
        self.block_configs = [_entry(block) for block in self.block_configs or ()]
        for layer, block in enumerate(self.block_configs):
            linear = getattr(block.attention, "replace_with_linear", False)
            if hasattr(block.ffn, "ffn_mult") or linear:
                raise ValueError(
                    f"block_configs[{layer}] has ffn_mult or replace_with_linear, which this class "
                    "does not know: load the checkpoint with its own code"
                )

    def validate_architecture(self) -> None:
        """Any number of heads: their size is written out."""

    def to_dict(self) -> dict[str, Any]:
        """With plain dictionaries in ``block_configs``."""
        settings: dict[str, Any] = super().to_dict()
        settings["block_configs"] = [_plain(block) for block in self.block_configs or ()]
        return settings

    @property
    def kv_sharing_modes(self) -> list[str | None]:
        """``"reuse"`` for a layer without attention: transformers gives it no cache slot."""
        blocks = self.block_configs or ()
        return ["reuse" if block.attention.no_op else None for block in blocks]


def shape_layers(layers: nn.ModuleList, config: DeciLMConfig) -> None:
    """Give each block, in place, the sub-layers and widths that the config says."""
    for layer, (module, own) in enumerate(zip(layers, config.block_configs or (), strict=True)):
        block: Any = module
        for name, stand_ins in STAND_INS.items():
            if getattr(own, name).no_op:
                for path, stand_in in stand_ins.items():
                    block.set_submodule(path, stand_in(layer))
        if not own.attention.no_op:
            keys = config.num_attention_heads // own.attention.n_heads_in_group
            widths = {"num_key_value_heads": keys, "attention_bias": config.qkv_bias}
            block.self_attn = type(block.self_attn)(LayerConfig(config, widths), layer)
            if not config.attention_bias:
                block.self_attn.o_proj.bias = None
        if not own.ffn.no_op:
            channels = {"intermediate_size": own.ffn.intermediate_size}
            block.mlp = type(block.mlp)(LayerConfig(config, channels))


class DeciLMModel(LlamaModel):
    """The body, each layer with its own widths."""

    config: DeciLMConfig
    config_class = DeciLMConfig

    def __init__(self, config: DeciLMConfig) -> None:
        super().__init__(config)
        shape_layers(self.layers, config)


class DeciLMForCausalLM(LlamaForCausalLM):
    """The body and its language modeling head, each layer with its own widths."""

    config: DeciLMConfig
    config_class = DeciLMConfig

    def __init__(self, config: DeciLMConfig) -> None:
        super().__init__(config)
        shape_layers(self.model.layers, config)
