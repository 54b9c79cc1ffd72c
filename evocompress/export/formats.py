"""The checkpoint formats: which candidates each can express, and how it builds the model."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Protocol, TypeGuard, runtime_checkable

from transformers import PreTrainedModel

from evocompress.core.errors import ConfigError, EvoCompressError, ExportError, one_line
from evocompress.core.registry import Registry
from evocompress.core.storage import CACHES, GGUF, Lane
from evocompress.core.types import DENSE, Candidate
from evocompress.export.compressed import CompressedTensors
from evocompress.export.compressed_vllm import CompressedForVllm
from evocompress.export.deci import Deci
from evocompress.export.folded import Folded
from evocompress.export.gguf import Gguf
from evocompress.export.gguf_writing import TYPES
from evocompress.export.modeling_file import ModelingFile
from evocompress.export.padded import Padded
from evocompress.export.running import Programs
from evocompress.export.stock import Stock
from evocompress.export.stored import StoredMatrices, TypeRules
from evocompress.export.weights import StateDict
from evocompress.models.families.outer import every_unit
from evocompress.models.loading import LoadedModel
from evocompress.space.costs import FileLayout


@runtime_checkable
class Format(Protocol):
    """A way to write a compressed model.

    Attributes:
        loading: Python that loads such a checkpoint, for its README; ``{path}`` and ``{auto}``, the
            class of transformers, are filled in.
        programs: How each program of `evocompress.export.programs.PROGRAMS` that loads such a
            checkpoint runs it.

    Examples:
        >>> isinstance(FORMATS["hf"], Format)
        True
    """

    loading: ClassVar[str]
    programs: ClassVar[Programs]

    def check_package(self) -> None:
        """Refuse to write the format where a package is missing that it needs.

        Raises:
            ExportError: It is not installed.
        """
        ...

    def obstacle(self, loaded: LoadedModel, candidate: Candidate) -> str | None:
        """The unit and level that this format cannot express; ``None`` if it can express all."""
        ...

    def note(self, loaded: LoadedModel, candidate: Candidate) -> str:
        """A paragraph for the README on what the format costs; may be empty."""
        ...

    def check_weights(self, loaded: LoadedModel, candidate: Candidate, weights: str) -> None:
        """Refuse a type of weights of `WEIGHTS` that the candidate cannot be stored in.

        Raises:
            ExportError: With the unit, or the formats that have the type.
        """
        ...

    def build(self, loaded: LoadedModel, state: StateDict, candidate: Candidate) -> PreTrainedModel:
        """The compressed model, sharing tensors with `state`; to be saved, not run."""
        ...

    def save(
        self, model: PreTrainedModel, loaded: LoadedModel, folder: Path, weights: str | None
    ) -> None:
        """Writes what `build` made into an empty folder; ``None`` keeps the type of weights."""
        ...

    def measured(self, folder: Path, loaded: LoadedModel, candidate: Candidate) -> dict[str, int]:
        """Costs counted in the written files; see `evocompress.export.measure`."""
        ...


@runtime_checkable
class TypedFormat(Format, Protocol):
    """A format that holds matrices of coarser types as such; others hold the rounded weights.

    Attributes:
        lanes: Whose types.

    Examples:
        >>> isinstance(FORMATS["gguf"], TypedFormat), isinstance(FORMATS["hf"], TypedFormat)
        (True, False)
    """

    lanes: ClassVar[frozenset[Lane]]

    def type_rules(self, loaded: LoadedModel, *, uneven: bool) -> TypeRules:
        """Which matrices can have types, and which must have one.

        Args:
            loaded: The dense model, or its outline.
            uneven: Layers may differ in width or lack something.
        """
        ...

    def save_typed(
        self,
        model: PreTrainedModel,
        loaded: LoadedModel,
        folder: Path,
        weights: str | None,
        stored: StoredMatrices,
    ) -> None:
        """`Format.save` with some matrices in types of their own."""
        ...


FORMATS: Registry[Format] = Registry(
    "format",
    "evocompress.formats",
    {
        "stock": Stock(),
        "hf": ModelingFile(),
        "padded": Padded(),
        "folded": Folded(),
        "deci": Deci(),
        "gguf": Gguf(),
        "compressed-tensors": CompressedTensors(),
        "compressed-tensors-vllm": CompressedForVllm(),
    },
    lambda found: isinstance(found, Format) and not isinstance(found, type),
)


def type_rules_of(name: str | None, loaded: LoadedModel, *, uneven: bool) -> TypeRules:
    """What a format says of the types of matrices, see `TypedFormat.type_rules`."""
    form = None if name is None else FORMATS[name]
    if isinstance(form, TypedFormat):
        return form.type_rules(loaded, uneven=uneven)
    return TypeRules()


@runtime_checkable
class SizedFormat(Format, Protocol):
    """A format of which the size of a file is told before any is written.

    Examples:
        >>> isinstance(FORMATS["gguf"], SizedFormat)
        True
    """

    def file_layout(self, loaded: LoadedModel, *, uneven: bool) -> FileLayout:
        """What a file is made of; `uneven` as in `TypedFormat.type_rules`."""
        ...


def file_layout_of(name: str, loaded: LoadedModel, *, uneven: bool) -> FileLayout:
    """What a file of a format is made of.

    Raises:
        ConfigError: Its size is not foretold, or it holds no such model.
    """
    form = FORMATS[name]
    if _is_sized(form):
        if reason := obstacle_of(name, loaded, Candidate()):
            raise ConfigError(f"'file_bytes' is that of format '{name}', which {reason}")
        return form.file_layout(loaded, uneven=uneven)
    sized = ", ".join(name for name in FORMATS.usable() if _is_sized(FORMATS[name]))
    raise ConfigError(f"'file_bytes' of format '{name}' is not foretold: give space.fits: {sized}")


def _is_sized(form: Format) -> TypeGuard[SizedFormat]:
    """Whether the size of its files is told, which have no zeros for what is gone."""
    return isinstance(form, SizedFormat) and not getattr(form, "adds_zeros", False)


def obstacle_of(name: str, loaded: LoadedModel, candidate: Candidate) -> str | None:
    """What format `name` cannot express of a candidate; ``None`` if it can express all.

    Some formats try the class of a model on tiny ones. One that fails in a way that nobody
    thought of is held by none of those.
    """
    form = FORMATS[name]
    if (reason := _cached_otherwise(form, loaded, candidate)) is not None:
        return reason
    try:
        return form.obstacle(loaded, candidate)
    except EvoCompressError:
        raise
    except Exception as error:  # classes of models fail with any type of error
        return f"cannot be tried for {loaded.family.model_type} models: {one_line(error)}"


def _cached_otherwise(form: Format, loaded: LoadedModel, candidate: Candidate) -> str | None:
    """Why the programs that load a format cannot have the candidate's types of caches."""
    types = {name: level.cache for name, level in candidate.levels if level.cache}
    if not types:
        return None
    first = next(iter(types))
    if not (isinstance(form, TypedFormat) and GGUF in form.lanes):
        return f"cannot express '{first}' at {types[first]}: what loads it has no such caches"
    if CACHES[types[first]].lane != GGUF:
        return f"cannot express '{first}' at {types[first]}: llama.cpp has no such type of caches"
    levels = candidate.by_name
    kept = [
        unit
        for unit in every_unit(loaded.family, loaded.model)
        if unit.kind == "cache" and not levels.get(unit.owner, DENSE).drop
    ]
    other = next((u.name for u in kept if types.get(u.name) != types[first]), None)
    if other is not None:
        return (
            f"cannot express '{first}' at {types[first]} beside '{other}' at "
            f"{types.get(other, 'dense')}: llama.cpp has one type for the caches of all layers"
        )
    return None


def build(
    name: str, loaded: LoadedModel, state: StateDict, candidate: Candidate
) -> PreTrainedModel:
    """`Format.build`, in one line where the class of the model refuses.

    Raises:
        ExportError: It does.
    """
    try:
        return FORMATS[name].build(loaded, state, candidate)
    except EvoCompressError:
        raise
    except Exception as error:  # classes of models fail with any type of error
        raise ExportError(
            f"format '{name}' cannot be built for this {loaded.family.model_type} model: "
            f"{one_line(error)}"
        ) from error


WEIGHTS = tuple(TYPES)
"""Types of weights that a checkpoint can be written in."""
