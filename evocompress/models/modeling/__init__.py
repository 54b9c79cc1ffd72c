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
    PreTrainedConfig,
    PreTrainedModel,
)

from evocompress.models.modeling import (
    modeling_deci,
    modeling_derived,
    modeling_resnet,
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
    "resnet": Classes(
        modeling_resnet.EvocompressResNetConfig,
        modeling_resnet.EvocompressResNetModel,
        modeling_resnet.EvocompressResNetForImageClassification,
        AutoModelForImageClassification,
    ),
}
"""Of each model type that has a modeling file of its own."""


def derived_classes(dense: type[PreTrainedModel]) -> Classes | None:
    """The classes for a model without a modeling file of its own, which are made here.

    `dense` is its class in transformers. There are none where its config or body is that of another
    type.
    """
    config: Any = dense.config_class
    if config not in AutoModel._model_mapping:
        return None
    body = modeling_derived.model_classes(AutoModel, config)[0]
    for auto in modeling_derived.AUTOS:
        if dense in modeling_derived.model_classes(auto, config):
            made = modeling_derived.made
            return Classes(made(config), made(body), made(dense), auto)
    return None


def register() -> None:
    """Has transformers know the classes: it loads and saves them without trusting any code."""
    # Which derives families, as this module does not.
    from evocompress.models.former import register_former

    register_former()
    derived = modeling_derived.EvocompressDerivedConfig
    AutoConfig.register(derived.model_type, derived, exist_ok=True)
    for classes in (*CLASSES.values(), DECI):
        AutoConfig.register(classes.config.model_type, classes.config, exist_ok=True)
        AutoModel.register(classes.config, classes.body, exist_ok=True)
        classes.auto.register(classes.config, classes.head, exist_ok=True)
        classes.head.register_for_auto_class(classes.auto.__name__)
        classes.body.register_for_auto_class("AutoModel")
        classes.config.register_for_auto_class()
