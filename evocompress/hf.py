"""Registers the modeling files with transformers, as an effect of ``import evocompress.hf``.

Afterwards ``AutoModelForCausalLM.from_pretrained``, and the Auto classes of other tasks, load
checkpoints of the formats ``hf``, ``folded`` and ``deci`` without ``trust_remote_code``, and what
``save_pretrained`` writes of such a model has its code files again.
"""

from evocompress.models.modeling import register

register()
