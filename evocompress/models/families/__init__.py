"""Model families: one interface (`base.Family`), derived or in a small file of their own."""

from collections.abc import Sequence

import transformers
from transformers import CONFIG_MAPPING, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from evocompress.core.errors import ModelError
from evocompress.core.registry import Registry
from evocompress.models.families.base import Family
from evocompress.models.families.branches import Matrix, SubLayer, SubLayerName
from evocompress.models.families.convolutional import Convolutional
from evocompress.models.families.derivation.derived import Derived, ToBeDerived, derived
from evocompress.models.families.derivation.matrices_alone import MatricesAlone
from evocompress.models.families.derivation.purpose import tasks_of
from evocompress.models.families.resnet import ResNet
from evocompress.models.families.shapes import one_way
from evocompress.models.families.uneven import (
    DERIVED,
    PREFIX,
    check_layers,
    dense_type,
    is_compressed,
    stock_class,
)
from evocompress.models.tasks import EMBEDDINGS

__all__ = [
    "FAMILIES",
    "Family",
    "Matrix",
    "SubLayer",
    "SubLayerName",
    "family_named",
    "family_of",
    "name_of",
    "split_experts",
]

FAMILIES: Registry[Family] = Registry(
    "family",
    "evocompress.families",
    {"resnet": ResNet()},
    lambda found: isinstance(found, Family),
)
"""By model type; where models of a type serve several tasks, the others have a name behind it."""

DOCUMENTATION = "docs/families.md"


def family_of(model: PreTrainedModel) -> Family:
    """The family that serves a model; of a CNN one of its own, with what its layers tell.

    Raises:
        ModelError: No family serves the model's type or class, or not in this variant.
    """
    family = family_named(model.config.model_type, [type(model).__name__])
    if isinstance(family, ToBeDerived):
        family = derived(type(model), model.config)
    if family.task.causal and not one_way(family, model.config):
        raise ModelError(
            f"this {family.model_type} model has attention in both directions (is_causal, "
            "use_bidirectional_attention), so it is no language model that tells the next token"
        )
    check_layers(model.config)
    family.check(model)
    if isinstance(family, Convolutional | Derived | MatricesAlone):
        return family.bound(model)
    return family


def family_named(model_type: str, classes: Sequence[str] = (), *, embeds: bool = False) -> Family:
    """The family that serves a model type, also one of `evocompress.hf`.

    Where a config does not call the model's class, it is the first task that models of the type are
    served for. `embeds`: it has files of sentence-transformers. Embedding models are often
    published under the class of language models, masked ones as well, that they were trained from.

    Raises:
        ModelError: None does, or none of that type serves that class.
    """
    if not is_compressed(model_type):
        return _stock_family(model_type, classes, embeds)
    known_as = [stock_class(one) for one in classes]
    of_class = known_as or model_type == DERIVED
    name = dense_type(known_as) if of_class else model_type.removeprefix(PREFIX)
    known = FAMILIES.get(name)
    if known is not None and (known.mixture is not None or isinstance(known, Convolutional)):
        raise ModelError(
            f"this is a compressed checkpoint of type {name!r}, whose family knows no blocks that "
            "differ, and so cannot be compressed again: give the original model and a lower "
            "budget, or a checkpoint of format stock, which has the model's own class"
        )
    stock = name if known is None else known.model_type
    return _stock_family(stock, known_as, embeds)


def _stock_family(model_type: str, classes: Sequence[str], embeds: bool) -> Family:
    """`family_named` for the types and classes of transformers."""
    names = [name for name in FAMILIES if f"{name}-".startswith(f"{model_type}-")]
    usable = FAMILIES.usable() if set(names) - {*FAMILIES.built_in} else FAMILIES
    named = [usable[name] for name in names if name in usable]
    serving = [family for family in named if family.model_type == model_type]
    if not serving:
        for broken in set(names) - usable.keys():
            FAMILIES[broken]  # says why it is not usable
        return _to_be_derived(model_type, classes, embeds)
    _check_one(classes)
    if embeds and serving[0].task.reads_text:
        return _embedding(model_type, serving)
    if not classes:
        return serving[0]
    # The first Llamas were written as LLaMAForCausalLM.
    wanted, own = classes[0].casefold(), (f.task.class_names(model_type) for f in serving)
    for family, of_class in zip(serving, own, strict=True):
        if wanted in map(str.casefold, of_class):
            return family
    known = [name for family in serving for name in family.task.class_names(model_type)]
    raise ModelError(_only(model_type, classes[0], known))


def _check_one(classes: Sequence[str]) -> None:
    """Refuse a config that names several classes."""
    if len(set(classes)) > 1:
        raise ModelError(
            f"config.json names several classes ({', '.join(classes)}), so it is not known what "
            "the model is for: keep its own in architectures"
        )


def _to_be_derived(model_type: str, classes: Sequence[str], embeds: bool) -> Family:
    """What stands for the family of a type that has none of its own.

    Raises:
        ModelError: None can be derived for such models.
    """
    served = tasks_of(model_type)
    if not served or (embeds and not EMBEDDINGS.class_names(model_type)):
        raise ModelError(_unknown(model_type))
    _check_one(classes)
    if embeds:
        return ToBeDerived(model_type, EMBEDDINGS)
    masked = model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES  # which is an encoder's, most likely
    if not classes and served[0][0].causal and not masked:
        return ToBeDerived(model_type, served[0][0])
    if not classes:
        first = {names[0]: f"{names[0]} (for {task.name})" for task, names in reversed(served)}
        said = " or ".join(reversed(first.values()))
        raise ModelError(
            f"the config of this model of type {model_type!r} names no class in architectures, so "
            f"it is not known what the model is for: add {said} there"
        )
    # The first Llamas were written as LLaMAForCausalLM.
    wanted = classes[0].casefold()
    for task, names in served:
        if wanted in map(str.casefold, names):
            return ToBeDerived(model_type, task)
    known = dict.fromkeys(name for _, names in served for name in names)
    raise ModelError(_only(model_type, classes[0], list(known)))


def split_experts(model: PreTrainedModel, like: PreTrainedModel) -> None:
    """Give every expert of a checkpoint's model matrices of its own, as those of `like` have.

    Its class may be transformers' own, and it may have fewer blocks, so that each of them is asked.
    """
    family = family_of(like)
    kinds = (family.at(index).mixture for index in range(len(family.blocks(like))))
    mixtures = {mixture.experts: mixture for mixture in kinds if mixture is not None}
    # A model of another type that it is compared with may have no such list of blocks.
    blocks = dict(model.named_modules()).get(family.layers_path)
    for block in blocks.children() if mixtures and blocks is not None else ():
        paths = dict(block.named_modules())
        for path in mixtures.keys() & paths:
            mixtures[path].prepare(model, [block])


def name_of(family: Family) -> str:
    """The name of a family in `FAMILIES`; of one that is derived its model type."""
    named = (name for name, known in FAMILIES.items() if type(known) is type(family))
    return next(named, family.model_type)


def _embedding(model_type: str, serving: Sequence[Family]) -> Family:
    """The one of a type's families that serves embedding models."""
    for family in serving:
        if family.task.compared == "embeddings":
            return family
    raise ModelError(
        f"embedding models of type {model_type!r} are not supported ({DOCUMENTATION} lists those "
        "that are)"
    )


def _only(model_type: str, given: str, served: Sequence[str]) -> str:
    return (
        f"models of class {given} are not supported: of type {model_type!r} only those of class "
        f"{' or '.join(served)} ({DOCUMENTATION})"
    )


def _unknown(model_type: str) -> str:
    known = ", ".join(dict.fromkeys(family.model_type for family in FAMILIES.usable().values()))
    why = f"models of type {model_type!r} are not supported"
    if model_type not in CONFIG_MAPPING:
        why += (
            f", because transformers {transformers.__version__} has no such type, and code that "
            "comes with a model is not used"
        )
    return (
        f"{why}; supported: {known}, and models whose layout can be derived, as `evocompress "
        f"models` lists them ({DOCUMENTATION} says how to add another)"
    )
