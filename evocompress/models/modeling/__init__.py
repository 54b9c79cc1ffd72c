"""The model classes of the modeling files, which also ship inside checkpoints.

The files import only torch, transformers and each other, so that a copy works on its own.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from evocompress.models.modeling import (
    modeling_bert,
    modeling_deci,
    modeling_gemma2,
    modeling_gemma3_text,
    modeling_gpt2,
    modeling_llama,
    modeling_mistral,
    modeling_mixtral,
    modeling_opt,
    modeling_phi3,
    modeling_qwen2,
    modeling_qwen2_moe,
    modeling_qwen3,
    modeling_qwen3_moe,
    modeling_resnet,
    modeling_starcoder2,
    modeling_vit,
)


@dataclass(frozen=True)
class Classes:
    """The classes that one modeling file defines.

    Attributes:
        config: Registered for ``AutoConfig``.
        body: Registered for ``AutoModel``.
        head: Registered for `auto`; the body itself where there is no head.
        auto: The class of transformers that loads models of the family's task.
    """

    config: type[PreTrainedConfig]
    body: type[PreTrainedModel]
    head: type[PreTrainedModel]
    auto: Any = AutoModelForCausalLM

    @property
    def auto_map(self) -> dict[str, str]:
        """What ``config.json`` must say for a load with ``trust_remote_code``."""
        autos = {"AutoConfig": self.config, "AutoModel": self.body}
        autos[self.auto.__name__] = self.head
        module = self.head.__module__.rsplit(".", 1)[-1]
        return {auto: f"{module}.{cls.__name__}" for auto, cls in autos.items()}

    @property
    def files(self) -> tuple[Path, ...]:
        """The source files that such a checkpoint needs."""
        module = self.head.__module__.rsplit(".", 1)[-1]
        return tuple(Path(__file__).with_name(name) for name in (f"{module}.py", "layers.py"))


DECI = Classes(
    modeling_deci.DeciLMConfig, modeling_deci.DeciLMModel, modeling_deci.DeciLMForCausalLM
)
"""Of the format ``deci``, for every family that it can hold."""

CLASSES: dict[str, Classes] = {
    "llama": Classes(
        modeling_llama.EvocompressLlamaConfig,
        modeling_llama.EvocompressLlamaModel,
        modeling_llama.EvocompressLlamaForCausalLM,
    ),
    "mistral": Classes(
        modeling_mistral.EvocompressMistralConfig,
        modeling_mistral.EvocompressMistralModel,
        modeling_mistral.EvocompressMistralForCausalLM,
    ),
    "qwen2": Classes(
        modeling_qwen2.EvocompressQwen2Config,
        modeling_qwen2.EvocompressQwen2Model,
        modeling_qwen2.EvocompressQwen2ForCausalLM,
    ),
    "qwen3": Classes(
        modeling_qwen3.EvocompressQwen3Config,
        modeling_qwen3.EvocompressQwen3Model,
        modeling_qwen3.EvocompressQwen3ForCausalLM,
    ),
    "phi3": Classes(
        modeling_phi3.EvocompressPhi3Config,
        modeling_phi3.EvocompressPhi3Model,
        modeling_phi3.EvocompressPhi3ForCausalLM,
    ),
    "gemma2": Classes(
        modeling_gemma2.EvocompressGemma2Config,
        modeling_gemma2.EvocompressGemma2Model,
        modeling_gemma2.EvocompressGemma2ForCausalLM,
    ),
    "gemma3_text": Classes(
        modeling_gemma3_text.EvocompressGemma3TextConfig,
        modeling_gemma3_text.EvocompressGemma3TextModel,
        modeling_gemma3_text.EvocompressGemma3ForCausalLM,
    ),
    "gpt2": Classes(
        modeling_gpt2.EvocompressGPT2Config,
        modeling_gpt2.EvocompressGPT2Model,
        modeling_gpt2.EvocompressGPT2LMHeadModel,
    ),
    "opt": Classes(
        modeling_opt.EvocompressOPTConfig,
        modeling_opt.EvocompressOPTModel,
        modeling_opt.EvocompressOPTForCausalLM,
    ),
    "starcoder2": Classes(
        modeling_starcoder2.EvocompressStarcoder2Config,
        modeling_starcoder2.EvocompressStarcoder2Model,
        modeling_starcoder2.EvocompressStarcoder2ForCausalLM,
    ),
    "mixtral": Classes(
        modeling_mixtral.EvocompressMixtralConfig,
        modeling_mixtral.EvocompressMixtralModel,
        modeling_mixtral.EvocompressMixtralForCausalLM,
    ),
    "qwen2_moe": Classes(
        modeling_qwen2_moe.EvocompressQwen2MoeConfig,
        modeling_qwen2_moe.EvocompressQwen2MoeModel,
        modeling_qwen2_moe.EvocompressQwen2MoeForCausalLM,
    ),
    "qwen3_moe": Classes(
        modeling_qwen3_moe.EvocompressQwen3MoeConfig,
        modeling_qwen3_moe.EvocompressQwen3MoeModel,
        modeling_qwen3_moe.EvocompressQwen3MoeForCausalLM,
    ),
    "llama-classifier": Classes(
        modeling_llama.EvocompressLlamaConfig,
        modeling_llama.EvocompressLlamaModel,
        modeling_llama.EvocompressLlamaForSequenceClassification,
        AutoModelForSequenceClassification,
    ),
    "llama-embedding": Classes(
        modeling_llama.EvocompressLlamaConfig,
        modeling_llama.EvocompressLlamaModel,
        modeling_llama.EvocompressLlamaModel,
        AutoModel,
    ),
    "mistral-classifier": Classes(
        modeling_mistral.EvocompressMistralConfig,
        modeling_mistral.EvocompressMistralModel,
        modeling_mistral.EvocompressMistralForSequenceClassification,
        AutoModelForSequenceClassification,
    ),
    "mistral-embedding": Classes(
        modeling_mistral.EvocompressMistralConfig,
        modeling_mistral.EvocompressMistralModel,
        modeling_mistral.EvocompressMistralModel,
        AutoModel,
    ),
    "qwen2-classifier": Classes(
        modeling_qwen2.EvocompressQwen2Config,
        modeling_qwen2.EvocompressQwen2Model,
        modeling_qwen2.EvocompressQwen2ForSequenceClassification,
        AutoModelForSequenceClassification,
    ),
    "qwen2-embedding": Classes(
        modeling_qwen2.EvocompressQwen2Config,
        modeling_qwen2.EvocompressQwen2Model,
        modeling_qwen2.EvocompressQwen2Model,
        AutoModel,
    ),
    "qwen3-classifier": Classes(
        modeling_qwen3.EvocompressQwen3Config,
        modeling_qwen3.EvocompressQwen3Model,
        modeling_qwen3.EvocompressQwen3ForSequenceClassification,
        AutoModelForSequenceClassification,
    ),
    "qwen3-embedding": Classes(
        modeling_qwen3.EvocompressQwen3Config,
        modeling_qwen3.EvocompressQwen3Model,
        modeling_qwen3.EvocompressQwen3Model,
        AutoModel,
    ),
    "gemma2-classifier": Classes(
        modeling_gemma2.EvocompressGemma2Config,
        modeling_gemma2.EvocompressGemma2Model,
        modeling_gemma2.EvocompressGemma2ForSequenceClassification,
        AutoModelForSequenceClassification,
    ),
    "gemma2-embedding": Classes(
        modeling_gemma2.EvocompressGemma2Config,
        modeling_gemma2.EvocompressGemma2Model,
        modeling_gemma2.EvocompressGemma2Model,
        AutoModel,
    ),
    "gemma3_text-classifier": Classes(
        modeling_gemma3_text.EvocompressGemma3TextConfig,
        modeling_gemma3_text.EvocompressGemma3TextModel,
        modeling_gemma3_text.EvocompressGemma3TextForSequenceClassification,
        AutoModelForSequenceClassification,
    ),
    "gemma3_text-embedding": Classes(
        modeling_gemma3_text.EvocompressGemma3TextConfig,
        modeling_gemma3_text.EvocompressGemma3TextModel,
        modeling_gemma3_text.EvocompressGemma3TextModel,
        AutoModel,
    ),
    "gpt2-classifier": Classes(
        modeling_gpt2.EvocompressGPT2Config,
        modeling_gpt2.EvocompressGPT2Model,
        modeling_gpt2.EvocompressGPT2ForSequenceClassification,
        AutoModelForSequenceClassification,
    ),
    "gpt2-embedding": Classes(
        modeling_gpt2.EvocompressGPT2Config,
        modeling_gpt2.EvocompressGPT2Model,
        modeling_gpt2.EvocompressGPT2Model,
        AutoModel,
    ),
    "bert": Classes(
        modeling_bert.EvocompressBertConfig,
        modeling_bert.EvocompressBertModel,
        modeling_bert.EvocompressBertModel,
        AutoModel,
    ),
    "bert-classifier": Classes(
        modeling_bert.EvocompressBertConfig,
        modeling_bert.EvocompressBertModel,
        modeling_bert.EvocompressBertForSequenceClassification,
        AutoModelForSequenceClassification,
    ),
    "roberta": Classes(
        modeling_bert.EvocompressRobertaConfig,
        modeling_bert.EvocompressRobertaModel,
        modeling_bert.EvocompressRobertaModel,
        AutoModel,
    ),
    "roberta-classifier": Classes(
        modeling_bert.EvocompressRobertaConfig,
        modeling_bert.EvocompressRobertaModel,
        modeling_bert.EvocompressRobertaForSequenceClassification,
        AutoModelForSequenceClassification,
    ),
    "xlm-roberta": Classes(
        modeling_bert.EvocompressXLMRobertaConfig,
        modeling_bert.EvocompressXLMRobertaModel,
        modeling_bert.EvocompressXLMRobertaModel,
        AutoModel,
    ),
    "xlm-roberta-classifier": Classes(
        modeling_bert.EvocompressXLMRobertaConfig,
        modeling_bert.EvocompressXLMRobertaModel,
        modeling_bert.EvocompressXLMRobertaForSequenceClassification,
        AutoModelForSequenceClassification,
    ),
    "vit": Classes(
        modeling_vit.EvocompressViTConfig,
        modeling_vit.EvocompressViTModel,
        modeling_vit.EvocompressViTForImageClassification,
        AutoModelForImageClassification,
    ),
    "deit": Classes(
        modeling_vit.EvocompressDeiTConfig,
        modeling_vit.EvocompressDeiTModel,
        modeling_vit.EvocompressDeiTForImageClassification,
        AutoModelForImageClassification,
    ),
    "deit-distilled": Classes(
        modeling_vit.EvocompressDistilledDeiTConfig,
        modeling_vit.EvocompressDistilledDeiTModel,
        modeling_vit.EvocompressDeiTForImageClassificationWithTeacher,
        AutoModelForImageClassification,
    ),
    "resnet": Classes(
        modeling_resnet.EvocompressResNetConfig,
        modeling_resnet.EvocompressResNetModel,
        modeling_resnet.EvocompressResNetForImageClassification,
        AutoModelForImageClassification,
    ),
}
"""By the names of `evocompress.models.families.FAMILIES`."""


def register() -> None:
    """Has transformers know the classes: it loads and saves them without trusting any code."""
    for classes in (*CLASSES.values(), DECI):
        AutoConfig.register(classes.config.model_type, classes.config, exist_ok=True)
        AutoModel.register(classes.config, classes.body, exist_ok=True)
        classes.auto.register(classes.config, classes.head, exist_ok=True)
        classes.head.register_for_auto_class(classes.auto.__name__)
        classes.body.register_for_auto_class("AutoModel")
        classes.config.register_for_auto_class()
