"""Registers the modeling files with transformers, as an effect of ``import evocompress.hf``.

Afterwards ``AutoModelForCausalLM.from_pretrained`` loads checkpoints of the formats ``hf``,
``folded`` and ``deci`` without ``trust_remote_code``.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from evocompress.export.modeling import CLASSES, DECI

for _classes in (*CLASSES.values(), DECI):
    AutoConfig.register(_classes.config.model_type, _classes.config, exist_ok=True)
    AutoModel.register(_classes.config, _classes.body, exist_ok=True)
    AutoModelForCausalLM.register(_classes.config, _classes.causal, exist_ok=True)
