"""OLMo (Groeneveld et al. 2024, 2402.00838): Llama's blocks with norms that have no weights."""

from transformers import PreTrainedModel

from evocompress.core.errors import ModelError
from evocompress.models.families import Family


class Olmo(Family):
    """The layout that `Family` describes (transformers ``OlmoForCausalLM``)."""

    model_type = "olmo"

    def check(self, model: PreTrainedModel) -> None:
        """Refuses models that clip queries, keys and values in place, so none runs twice.

        Raises:
            ModelError: It is such a model.
        """
        if model.config.clip_qkv is not None:
            raise ModelError("this OLMo model clips its queries (clip_qkv), which is not tried")


OLMO = Olmo()
