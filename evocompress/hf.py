"""Registers the modeling files with transformers, as an effect of ``import evocompress.hf``.

Afterwards ``AutoModelForCausalLM.from_pretrained``, and the Auto classes of other tasks, load
checkpoints of the formats ``hf``, ``folded`` and ``deci`` without ``trust_remote_code``, and what
``save_pretrained`` writes of such a model has its code files again.
"""

from transformers import AutoConfig, AutoModel

from evocompress.export.modeling import CLASSES, DECI

for _classes in (*CLASSES.values(), DECI):
    AutoConfig.register(_classes.config.model_type, _classes.config, exist_ok=True)
    AutoModel.register(_classes.config, _classes.body, exist_ok=True)
    _classes.auto.register(_classes.config, _classes.head, exist_ok=True)
    _classes.head.register_for_auto_class(_classes.auto.__name__)
    _classes.body.register_for_auto_class("AutoModel")
    _classes.config.register_for_auto_class()
