"""Tiny random models and a byte tokenizer, made offline in milliseconds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.pytorch_utils import Conv1D

from evocompress.models.checkpoints import quiet_transformers
from evocompress.models.families import FAMILIES, Family, family_of
from evocompress.models.families.base import prepare
from evocompress.models.families.convolutional import Convolutional
from evocompress.models.families.derivation.derived import ToBeDerived
from evocompress.models.loading import LoadedModel, loaded
from evocompress.models.tasks import (
    CAUSAL,
    DECODER_CLASSES,
    DECODER_EMBEDDINGS,
    DISTILLED_IMAGE_CLASSES,
    EMBEDDINGS,
    IMAGE_CLASSES,
    TEXT_CLASSES,
    Task,
)

HEADS = 4
KV_HEADS = 2
WINDOW = 8
CONTEXT = 512
END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0
CLASSES = 10
NEVER_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}

_GROUPED: dict[str, Any] = {"num_key_value_heads": KV_HEADS}
_WIDE_HEADS: dict[str, Any] = _GROUPED | {"head_dim": 24}
_GEMMA: dict[str, Any] = _WIDE_HEADS | {"query_pre_attn_scalar": 24, "sliding_window": WINDOW}
_MIXTURE: dict[str, Any] = _GROUPED | {"num_experts_per_tok": 2}
_CLASSES: dict[str, Any] = {"num_labels": CLASSES}
_PADDED: dict[str, Any] = {"pad_token_id": 1, "max_position_embeddings": CONTEXT + 2}
_IMAGES: dict[str, Any] = _CLASSES | {"image_size": 8, "patch_size": 2, "num_channels": 1}
_TEXT: dict[str, Any] = {
    "max_position_embeddings": CONTEXT,
    "bos_token_id": END_OF_TEXT_ID,
    "eos_token_id": END_OF_TEXT_ID,
    "pad_token_id": None,
}
_SETTINGS: dict[str, dict[str, Any]] = {
    "llama": _GROUPED | {"tie_word_embeddings": True},
    "mistral": _GROUPED | {"sliding_window": WINDOW},
    "qwen2": _GROUPED
    | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen3": _WIDE_HEADS,
    "phi3": _GROUPED,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA | {"sliding_window_pattern": 2, "final_logit_softcapping": 20.0},
    "gpt2": {},
    "opt": {},
    "starcoder2": _GROUPED | {"sliding_window": WINDOW},
    "mixtral": _MIXTURE | {"num_local_experts": 4},
    "qwen2_moe": _MIXTURE
    | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
    | {"num_experts": 5, "moe_intermediate_size": 128, "shared_expert_intermediate_size": 96},
    "qwen3_moe": _WIDE_HEADS
    | {"num_experts_per_tok": 2, "num_experts": 5, "moe_intermediate_size": 128},
    "modernbert-decoder": {"pad_token_id": 1},  # of the examples
    "bert": {},
    "bert-classifier": _CLASSES,
    "roberta": _PADDED,
    "roberta-classifier": _PADDED | _CLASSES,
    "xlm-roberta": _PADDED,
    "xlm-roberta-classifier": _PADDED | _CLASSES,
    "vit": _IMAGES,
    "deit": _IMAGES | {"architectures": ["DeiTForImageClassification"]},
    "deit-distilled": _IMAGES | {"architectures": ["DeiTForImageClassificationWithTeacher"]},
    "resnet": _CLASSES | {"num_channels": 1, "image_size": 32},
}
_INNER_NAME = {"gpt2": "n_inner", "opt": "ffn_dim"}


MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe")
"""Types whose MLPs are mixtures of experts."""

DECODERS = (
    *("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text", "gpt2", "opt"),
    *("starcoder2", *MIXTURES),
)
"""Types of causal models."""

_ENDS = {"": CAUSAL, "classifier": DECODER_CLASSES, "embedding": DECODER_EMBEDDINGS}

HEADLESS = tuple(
    f"{kind}-{end}"
    for kind in ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "gpt2")
    for end in _ENDS
    if end
)
"""Classifiers and embedding models of such types."""

NOT_DECODERS: Mapping[str, tuple[str, Task]] = {
    "bert": ("bert", EMBEDDINGS),
    "bert-classifier": ("bert", TEXT_CLASSES),
    "roberta": ("roberta", EMBEDDINGS),
    "roberta-classifier": ("roberta", TEXT_CLASSES),
    "xlm-roberta": ("xlm-roberta", EMBEDDINGS),
    "xlm-roberta-classifier": ("xlm-roberta", TEXT_CLASSES),
    "vit": ("vit", IMAGE_CLASSES),
    "deit": ("deit", IMAGE_CLASSES),
    "deit-distilled": ("deit", DISTILLED_IMAGE_CLASSES),
}
"""The types and tasks of models with attention in both directions."""

NAMES = (*DECODERS, *HEADLESS, *NOT_DECODERS, *FAMILIES.built_in)
"""What there is a tiny model of."""

_SETTINGS |= {
    name: _SETTINGS[name.partition("-")[0]] | (_CLASSES if name.endswith("classifier") else {})
    for name in HEADLESS
}


def declared(name: str) -> Family:
    """What is known of the family of a tiny model before there is one."""
    if name in FAMILIES:
        return FAMILIES[name]
    kind, _, end = name.partition("-")
    return ToBeDerived(*NOT_DECODERS.get(name) or (kind, _ENDS[end]))


VARIED = ("llama", "gpt2", "opt", "phi3", "gemma2", "qwen2_moe", "bert", "vit")
"""Families that differ in structure, each unlike the others; every further one is like one of these
in most respects, and suites with a large grid run the whole of it on these only."""

ENCODERS = ("bert", "bert-classifier", "vit", "gpt2-classifier", "gpt2-embedding")
"""One of each other task, for what does not depend on the family; the last two are decoders."""

SCORER = "gpt2-scorer"
"""What `tiny_loaded` calls a decoder's classifier of one output, of no family of its own."""


def tiny_model(
    name: str,
    *,
    seed: int = 0,
    layers: int = 3,
    hidden: int = 64,
    vocabulary: int = 256,
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """A random model of a family, on the CPU, prepared and ready to be run.

    It has 4 heads, 2 key-value heads and attention windows of 8 tokens where the family has
    such things; images have 8 x 8 pixels. Weights are drawn large enough that every part of it
    changes the outputs.

    Args:
        name: One of `NAMES`.
        seed: Of the weights.
        layers: Number of blocks. Of a CNN the second is the first of another stage.
        hidden: Width of the residual stream; the MLP is twice as wide.
        vocabulary: Number of tokens; at least 244 for use with `tiny_tokenizer`.
        dtype: Of the weights.
    """
    model = stock_model(name, seed=seed, layers=layers, hidden=hidden, vocabulary=vocabulary)
    nn.Module.to(model, dtype)
    prepare(family_of(model), model)
    return model


def stock_model(
    name: str, *, seed: int = 0, layers: int = 3, hidden: int = 64, vocabulary: int = 256
) -> PreTrainedModel:
    """`tiny_model` in float32 as transformers makes it, its experts in fused tensors."""
    family = declared(name)
    settings: dict[str, Any] = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        _INNER_NAME.get(family.model_type, "intermediate_size"): 2 * hidden,
    }
    if isinstance(family, Convolutional):
        settings = {
            "embedding_size": 2 * hidden,
            "hidden_sizes": [2 * hidden, 4 * hidden],
            "depths": [1, layers - 1],
        }
    if family.task.reads_text:
        settings |= _TEXT | {"vocab_size": vocabulary}
    config = AutoConfig.for_model(family.model_type, **settings | _SETTINGS.get(name, _GROUPED))
    return _random(family.task, config, seed)


def tiny_resnet(layer_type: str, *, layers: int = 4) -> LoadedModel:
    """A random ResNet of ``basic`` or ``bottleneck`` layers; the second begins a stage."""
    config = AutoConfig.for_model(
        "resnet",
        embedding_size=16,
        hidden_sizes=[16, 32],
        depths=[1, layers - 1],
        layer_type=layer_type,
        **_SETTINGS["resnet"],
    )
    model = _random(IMAGE_CLASSES, config)
    return loaded(model, None, f"tiny:resnet-{layer_type}")


def windowless(
    model_type: str, *, layers: int = 4, hidden: int = 64, vocabulary: int = 256
) -> LoadedModel:
    """A random Llama, Mistral or Qwen with full attention, as other programs want it.

    It has 4 heads of hidden / 4, 2 key-value heads and an MLP twice as wide as `hidden`; engines
    want heads of 64.
    """
    config = AutoConfig.for_model(
        model_type,
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=hidden // HEADS,
        max_position_embeddings=CONTEXT,
        sliding_window=None,
        bos_token_id=END_OF_TEXT_ID,
        eos_token_id=END_OF_TEXT_ID,
        pad_token_id=None,
    )
    model = _random(CAUSAL, config)
    return loaded(model, tiny_tokenizer(), f"tiny:{model_type}")


def _random(task: Task, config: Any, seed: int = 0) -> PreTrainedModel:
    """A model of a config in float32.

    Matrices that keep the scale of their input, varied norms, biases that are not zero.
    An embedding is scaled as the head that it may be tied to.
    """
    model: PreTrainedModel = task.auto.from_config(config, dtype=torch.float32)
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.add_(0.2 * noise)
            else:
                parameter.copy_(noise / _inputs(module, parameter) ** 0.5)
        for name, buffer in module.named_buffers(recurse=False):
            if name.startswith("running"):
                buffer.add_(0.2 * torch.rand(buffer.shape, generator=generator))
    model.eval()
    return model


def _inputs(module: nn.Module, weight: Tensor) -> int:
    """How many inputs a linear module's weight takes."""
    if weight.ndim == 3:  # one matrix for each expert
        return weight.shape[2]
    return weight.shape[0] if isinstance(module, Conv1D) else weight[0].numel()


def tiny_tokenizer(*, opens: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer of one token per byte that UTF-8 uses: 243, after the end of text (id 0).

    Args:
        opens: It puts the end of text, which is the beginning of one as well, before every text.
    """
    alphabet = _byte_alphabet()
    vocabulary = {END_OF_TEXT: END_OF_TEXT_ID}
    for byte in sorted(set(range(256)) - NEVER_IN_UTF8):
        vocabulary[alphabet[byte]] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if opens:
        tokenizer.post_processor = TemplateProcessing(
            single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, END_OF_TEXT_ID)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )


def _byte_alphabet() -> dict[int, str]:
    """The character that stands for each byte in a byte-level tokenizer.

    Printable bytes stand for themselves and the rest for U+0100 onwards, as in GPT-2's
    ``bytes_to_unicode`` (Radford et al., 2019).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(0x100 + place) for place, byte in enumerate(others)
    }


def tiny_loaded(
    name: str = "llama",
    *,
    seed: int = 0,
    layers: int = 3,
    hidden: int = 64,
    vocabulary: int = 256,
    dtype: torch.dtype = torch.float32,
) -> LoadedModel:
    """`tiny_model` with `tiny_tokenizer`, as `evocompress.models.loading.load` would give them."""
    settings: dict[str, Any] = {"seed": seed, "layers": layers, "hidden": hidden}
    settings |= {"vocabulary": vocabulary, "dtype": dtype}
    model = _scorer(**settings) if name == SCORER else tiny_model(name, **settings)
    return loaded(model, tiny_tokenizer(), f"tiny:{name}")


def _scorer(**settings: Any) -> PreTrainedModel:
    """A classifier of a decoder with only its first output."""
    model: Any = tiny_model("gpt2-classifier", **settings)
    model.config.num_labels = model.num_labels = model.score.out_features = 1
    model.score.weight = nn.Parameter(model.score.weight[:1].clone(), requires_grad=False)
    found: PreTrainedModel = model
    return found


def tiny_checkpoint(folder: Path, name: str = "llama") -> Path:
    """Save `tiny_model` and `tiny_tokenizer` into `folder`, and return it."""
    with quiet_transformers():
        stock_model(name).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
    return folder
