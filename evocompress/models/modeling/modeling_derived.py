"""Any model of transformers whose blocks each have their own form. Ships inside checkpoints.

For a class ``XForCausalLM`` of transformers this module has ``EvocompressXForCausalLM``, the same
class with other blocks, and for its config ``XConfig`` an ``EvocompressXConfig``; each is made when
it is first asked for. ``config.per_layer_config[i].edits`` says how block i is made from the
class's own: by `edited`. ``before`` and ``after`` are the edits of blocks that have lost their
attention and run in front of a block and behind it. In a model of several parts that is in the
config of its language model.
"""

import copy
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, cast

import torch
import transformers
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import (
    Cache,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

from .layers import (
    REFUSING,
    Expert,
    Experts,
    LayerConfig,
    PerLayerConfig,
    check_cache,
    folded,
    gating,
    projections,
    uncounted,
)

PREFIX = "Evocompress"
"""How the names of the classes begin that are made here."""

MODEL_TYPE = "evocompress_derived"

AUTOS: Sequence[Any] = (
    transformers.AutoModelForImageTextToText,
    transformers.AutoModelForMultimodalLM,
    transformers.AutoModelForCausalLM,
    transformers.AutoModelForSequenceClassification,
    transformers.AutoModelForImageClassification,
    transformers.AutoModel,
)
"""The classes of transformers that load such a checkpoint, if they load the model's own."""


class Passing(nn.Identity):
    """Stands where a norm was, by whose weight a block may ask for a type of number.

    Or where another module of a sub-layer was, which may be given more than the hidden state, such
    as a cache: a short convolution behind an attention.
    """

    def __init__(self, former: nn.Module) -> None:
        super().__init__()
        weight = getattr(former, "weight", None)
        if isinstance(weight, torch.Tensor):
            self.register_buffer("weight", weight.detach().new_empty(0), persistent=False)

    def forward(self, *given: Any, **named: Any) -> torch.Tensor:
        """The first tensor that is given."""
        return next(v for v in (*given, *named.values()) if isinstance(v, torch.Tensor))


class Nothing(nn.Module):
    """Stands where the modules of a sub-layer were: a zero for the residual addition.

    Args:
        former: The one of them in whose place it is. Its buffers that no checkpoint has stay, for
            the model around it may be what fills them.
        layer_idx: Number of the block without attention, which has no cache; ``None`` where it is
            part of another layer, or of one with an attention.
        among: How many things they returned, the zero being the first; 0 where it was all.
        residual: Of modules that make the residual addition themselves, the place and the name of
            the argument that they add to; it takes the place of the zero.
    """

    def __init__(
        self,
        former: nn.Module,
        layer_idx: int | None,
        among: int,
        residual: tuple[int, str] | None,
    ) -> None:
        super().__init__()
        for name in former._non_persistent_buffers_set:
            self.register_buffer(name, former.get_buffer(name), persistent=False)
        self.layer_idx = layer_idx
        self.among = among
        self.residual = residual

    def forward(self, *given: Any, **named: Any) -> Any:
        """A zero like the first tensor that is given, and ``None`` for each other thing."""
        values = (*given, *named.values())
        check_caches(values, self.layer_idx)
        if self.residual is not None:
            place, name = self.residual
            result = named[name] if name in named else given[place]
        else:
            # Some blocks add to it in its place.
            result = torch.zeros_like(next(v for v in values if isinstance(v, torch.Tensor)))
        return (result, *[None] * (self.among - 1)) if self.among else result


def passed_on(
    layer: int | None, hidden_states: torch.Tensor, *given: Any, **named: Any
) -> torch.Tensor:
    """What a block without any sub-layer makes of the residual stream."""
    check_caches((*given, *named.values()), layer)
    return hidden_states


def check_caches(values: Iterable[Any], layer: int | None) -> None:
    """Refuse a cache among the arguments of a layer without attention that has a slot for it."""
    for value in values:
        if layer is not None and isinstance(value, Cache):
            check_cache(value, layer)


def alone(block: nn.Module, edits: Mapping[str, Any]) -> nn.Module:
    """A block without attention that runs before or behind another one, whose class it has."""
    other, kind = copy.deepcopy(block), cast(Any, type(block))
    edited(other, edits, None)
    other.__class__ = uncounted(kind)
    return other


def edited(block: nn.Module, edits: Mapping[str, Any], layer: int | None) -> None:
    """Give a block, in place, another form.

    Args:
        block: As the model's class makes it.
        edits: ``passes``: it has no sub-layer. ``identities``: paths of modules that become the
            identity. ``zeros``: {path of a module that becomes a zero: among how many things that
            it returns}; ``residuals``, where it makes the residual addition itself: {path: place
            and name of the argument that it adds to}. ``experts``: {path of the experts of a
            mixture: number, channels of each}, which get matrices of their own. ``shapes``:
            {tensor: shape}, of a bias also where there was none. ``attributes``: {path of an
            attribute of a module: value}. ``configs``: {path of the config that a module holds: the
            settings in which its own differs}.
        layer: Number of the block without attention; ``None`` of one that is part of another
            layer, or that has a cache.
    """
    if edits.get("passes"):
        block.forward = partial(passed_on, layer)
    for path in edits.get("identities", ()):
        block.set_submodule(path, Passing(block.get_submodule(path)))
    for path, among in edits.get("zeros", {}).items():
        residual = edits.get("residuals", {}).get(path)
        block.set_submodule(path, Nothing(block.get_submodule(path), layer, among, residual))
    for path, (count, channels) in edits.get("experts", {}).items():
        block.set_submodule(path, split(block.get_submodule(path), count, channels))
    for name, shape in edits.get("shapes", {}).items():
        reshape(*_place(block, name), shape)
    for name, value in edits.get("attributes", {}).items():
        setattr(*_place(block, name), tuple(value) if isinstance(value, list) else value)
    for name, settings in edits.get("configs", {}).items():
        module, attribute = _place(block, name)
        setattr(module, attribute, LayerConfig(getattr(module, attribute), settings))


def _place(block: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module with an attribute, and what that is called there."""
    path, _, attribute = name.rpartition(".")
    return block.get_submodule(path), attribute


def reshape(module: nn.Module, name: str, shape: Sequence[int]) -> None:
    """Give a tensor of a module a smaller shape; a bias that is missing becomes one of zeros."""
    whole: Any = module
    old = getattr(whole, name)
    places = tuple(map(slice, shape))
    new = whole.weight.new_zeros(shape) if old is None else old.data[places].clone()
    setattr(whole, name, new if name in whole._buffers else nn.Parameter(new))
    if name == "weight" and isinstance(whole, nn.Linear):
        whole.out_features, whole.in_features = shape
    if name == "weight" and isinstance(whole, Conv1D):
        whole.nx, whole.nf = shape


def split(fused: Any, count: int, channels: int) -> nn.Module:
    """Experts with matrices of their own for those that a module holds in a few tensors."""
    whole = projections(fused)
    weight = whole["down"][0]
    inner, down = (weight.shape[1], channels), (channels, weight.shape[1])
    sizes = {name: down if name == "down" else inner for name in whole}
    each = (
        Expert(
            {name: nn.Linear(*sizes[name], bias=whole[name][1] is not None) for name in whole},
            gating(fused),
        )
        for _ in range(count)
    )
    return Experts(each).to(device=weight.device, dtype=weight.dtype)


BUILT: list[Any] = []
"""The configs of models that are being built."""

VIEW: Any = type(PreTrainedConfig().per_layer_config)
"""What transformers gives of the configs of layers."""


class Layers(VIEW):  # type: ignore[misc]
    """The configs of a model's layers, by number or by the name of a type of layer.

    transformers asks by the type for what all layers of it share, such as the width of a head, and
    would refuse where they differ in anything; here the first one of the type answers.
    """

    def __getitem__(self, layer: Any) -> Any:
        index = self._config.layer_types.index(layer) if isinstance(layer, str) else layer
        return super().__getitem__(index)


class DerivedConfig(PerLayerConfig):
    """Mixin for a model's config.

    Attributes:
        dense_class: Name of the model's class in transformers; of a language model within a model
            of several parts that of its config.
        blocks: Module path of the list of blocks within the model's body.
        dense_layers: The ``per_layer_config`` of the model in transformers, where it has one.
        edits: Of a block; see `edited`.
        sharing: The ``kv_sharing_modes`` of the class in transformers.
    """

    dense_class = ""
    blocks = ""
    dense_layers: ClassVar[Mapping[str, Any]] = {}
    edits: ClassVar[Mapping[str, Any]] = {}
    sharing: Any = None

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **settings: Any) -> Any:
        """As transformers makes it, with the parts that are such configs as well."""
        parts = {
            name: EvocompressDerivedConfig.from_dict(part)
            for name, part in config_dict.items()
            if isinstance(part, dict) and part.get("model_type") == MODEL_TYPE
        }
        whole: Any = super()
        return whole.from_dict(config_dict | parts, **settings)

    @property
    def per_layer_config(self) -> Any:
        """The configs of the layers."""
        return Layers(self)

    @per_layer_config.setter
    def per_layer_config(self, entries: Any) -> None:
        REFUSING.per_layer_config.fset(self, entries)

    @property
    def kv_sharing_modes(self) -> list[str | None]:
        """Those of the model's own layers, and ``"reuse"`` for a layer without attention.

        While a model is built they are the layers' own: some give a layer that reuses another MLP.
        """
        layers: Sequence[PerLayerConfig] = self.per_layer_config
        modes: Sequence[str | None] = self.sharing or [None] * len(layers)
        if any(self is config for config in BUILT):
            return list(modes)
        return [
            "reuse" if "attention" in layer.skip else mode
            for layer, mode in zip(layers, modes, strict=True)
        ]


class DerivedModel:
    """Mixin for a model, or its body alone, whose blocks have the form that its config says."""

    def __init__(self, config: PreTrainedConfig, *given: Any, **settings: Any) -> None:
        BUILT.append(config.get_text_config(decoder=True))
        try:
            super().__init__(config, *given, **settings)  # type: ignore[call-arg]
        finally:
            BUILT.pop()
        whole: Any = self
        body: Any = whole.base_model
        decoder: Any = body.get_submodule(config.blocks.rpartition(".")[0])
        if any(one is not whole and isinstance(one, DerivedModel) for one in (body, decoder)):
            return  # it has done so itself
        layers = config.get_text_config(decoder=True).per_layer_config
        for layer, block in enumerate(body.get_submodule(config.blocks)):
            own = layers[layer]
            sides = [nn.ModuleList(map(partial(alone, block), s)) for s in (own.before, own.after)]
            edited(block, own.edits, layer if "attention" in own.skip else None)
            if any(sides):
                block.before, block.after = sides
                block.__class__ = folded(cast(Any, type(block)))
        there = {name for name, _ in whole.named_parameters(remove_duplicate=False)}
        named = whole.all_tied_weights_keys
        if not there.issuperset({*named, *named.values()}):
            whole.tied = whole.all_tied_weights_keys = still_tied(named, there)

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """As transformers does, and what a model makes of the modules in it, such as buffers.

        transformers passes over models without tensors of their own in classes that are not its.
        """
        super().initialize_weights()  # type: ignore[misc]
        for module in cast(nn.Module, self).modules():
            if isinstance(module, PreTrainedModel):
                module._init_weights(module)

    def get_expanded_tied_weights_keys(self, *given: Any, **settings: Any) -> dict[str, str]:
        """What is tied of the parameters that are left; the class's own patterns may find none."""
        whole: Any = super()
        own: dict[str, str] | None = getattr(self, "tied", None)
        found = whole.get_expanded_tied_weights_keys(*given, **settings) if own is None else own
        return dict(found)


def still_tied(named: Mapping[str, str], there: Collection[str]) -> dict[str, str]:
    """What is tied to what of the parameters that are left, by {name: the one it was tied to}."""
    first: dict[str, str] = {}
    for name, former in [*((one, one) for one in named.values()), *named.items()]:
        if name in there:
            first.setdefault(former, name)
    every = ((name, former) for name, former in named.items() if name in there)
    return {name: first[former] for name, former in every if first[former] != name}


class EvocompressDerivedConfig(PreTrainedConfig):
    """The config of any such model; what is read is of the class made for its ``dense_class``."""

    model_type = MODEL_TYPE

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **settings: Any) -> Any:
        """The config of the model's own class.

        Raises:
            ValueError: transformers has no such class.
        """
        name = config_dict.get("dense_class")
        dense = getattr(transformers, name, None) if isinstance(name, str) else None
        if dense is None:
            raise ValueError(
                f"dense_class {name!r} is no class of transformers {transformers.__version__}, "
                "so it is not known what the model is"
            )
        return made(getattr(dense, "config_class", dense)).from_dict(config_dict, **settings)


def model_classes(auto: Any, config: type) -> tuple[Any, ...]:
    """The classes of models of a config that a class of transformers makes, perhaps none."""
    found = auto._model_mapping.get(config, ())
    return found if isinstance(found, tuple) else (found,)


def made(dense: type) -> Any:
    """The class of this module for a config or model class of transformers."""
    return getattr(sys.modules[__name__], PREFIX + dense.__name__)


def __getattr__(name: str) -> Any:
    dense: Any = getattr(transformers, name.removeprefix(PREFIX), None)
    known = isinstance(dense, type) and issubclass(dense, PreTrainedConfig | PreTrainedModel)
    if not (name.startswith(PREFIX) and known):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if hasattr(dense, "config_class"):
        return _keep(name, (DerivedModel, dense), config_class=made(dense.config_class))
    own = _keep(
        name,
        (DerivedConfig, dense),
        model_type=MODEL_TYPE,
        sharing=getattr(dense, "kv_sharing_modes", None),
        _auto_class="AutoConfig",
    )
    strict(own)
    for auto in reversed(AUTOS):
        every = model_classes(auto, dense)
        models = tuple(made(one) for one in every if getattr(one, "config_class", None) is dense)
        for model in models:
            model.register_for_auto_class(auto)
        if models:  # of several it is told by ``architectures`` which one it is
            auto.register(own, models if len(models) > 1 else models[0], exist_ok=True)
    return own


def _keep(name: str, bases: tuple[type, ...], **attributes: Any) -> Any:
    """A new class as if it stood here, so that it can be found by its name."""
    kind = type(name, bases, {"__module__": __name__, "__doc__": bases[0].__doc__, **attributes})
    globals()[name] = kind
    return kind
