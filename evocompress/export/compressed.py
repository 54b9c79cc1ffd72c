"""Format ``compressed-tensors``: matrices of groups as that package packs them.

Those of ``w8a8`` are integers of a byte each, whose inputs it rounds while the model runs.
transformers reads it by the package `compressed-tensors`. The rest is as in format ``stock``, or
``hf`` where that cannot express the candidate. What vLLM reads is ``compressed-tensors-vllm``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from evocompress.core.canonical import MATRICES
from evocompress.core.errors import ExportError
from evocompress.core.files import read_json, write_json
from evocompress.core.storage import GROUPS, Lane, StorageType, rounds_inputs, storage_type
from evocompress.core.types import Candidate, Unit
from evocompress.export.modeling_file import ModelingFile
from evocompress.export.pretrained import LOADING
from evocompress.export.running import Programs, Running
from evocompress.export.safetensors_size import safetensors_layout
from evocompress.export.stock import Stock
from evocompress.export.stored import StoredMatrices, TypeRules
from evocompress.export.weights import StateDict
from evocompress.models.dummy_inputs import random_batch
from evocompress.models.families.outer import every_unit
from evocompress.models.loading import LoadedModel, once
from evocompress.space.costs import FileLayout

PACKED = "pack-quantized"
"""What compressed-tensors calls integers that are packed into words."""

BYTES = "int-quantized"
"""What it calls those of a byte each."""

MIXED = "mixed-precision"
"""What it calls a model with both."""

INDEX = "model.safetensors.index.json"


class CompressedTensors:
    """Words of integers with scales, in place of the weights of a linear layer.

    Attributes:
        like: The format that holds the same, but for types of weights.
        uneven: The format of the rest where that is not ``stock``.
        flat: Whether inputs (tokens, in) without an axis of sequences are rounded token by token.
    """

    loading: ClassVar[str] = f"# pip install compressed-tensors\n{LOADING}"
    lanes: ClassVar[frozenset[Lane]] = frozenset({GROUPS})
    like: ClassVar[str] = "hf"
    uneven: ClassVar[ModelingFile] = ModelingFile()
    flat: ClassVar[bool] = False
    programs: ClassVar[Programs] = {
        "transformers": Running(
            "the model's own class, with the package compressed-tensors", on_request=True
        ),
    }

    def check_package(self) -> None:
        """Nothing is needed to write it."""

    def obstacle(self, loaded: LoadedModel, candidate: Candidate) -> str | None:
        """Other types than groups, or matrices that are in no linear layers."""
        types = {name: level.bits for name, level in candidate.levels if level.bits}
        other = next((n for n, t in types.items() if storage_type(t).lane != GROUPS), None)
        if other is not None:
            return f"holds groups (w4g64), and {other} has llama.cpp's type {types[other]}"
        tree = every_unit(loaded.family, loaded.model).by_name if types else {}
        for name, kind in types.items():
            if storage_type(kind).ranges == "zero point":
                return (
                    f"has no zero points, as {kind} of {name} has: transformers 5.23 reads none "
                    "with compressed-tensors 0.20"
                )
            if reason := _unpacked(loaded, tree[name], tree):
                return f"packs linear layers, and {name} {reason}"
            if rounds_inputs(kind) and not self.flat and name in _reading_rows(loaded):
                return (
                    f"has no {kind} of {name}, which reads all tokens in one matrix: "
                    "compressed-tensors 0.20 then rounds them by one scale, not token by token"
                )
        return self._inner(loaded, candidate).obstacle(loaded, candidate)

    def note(self, loaded: LoadedModel, candidate: Candidate) -> str:
        """That of the inner format."""
        return self._inner(loaded, candidate).note(loaded, candidate)

    def check_weights(self, loaded: LoadedModel, candidate: Candidate, weights: str) -> None:
        """Those of the other weights."""
        self._inner(loaded, candidate).check_weights(loaded, candidate, weights)

    def build(self, loaded: LoadedModel, state: StateDict, candidate: Candidate) -> PreTrainedModel:
        """The model of the inner format."""
        return self._inner(loaded, candidate).build(loaded, state, candidate)

    def save(
        self, model: PreTrainedModel, loaded: LoadedModel, folder: Path, weights: str | None
    ) -> None:
        """What the inner format writes: nothing is in groups."""
        inner = Stock() if type(model) is type(loaded.model) else self.uneven
        inner.save(model, loaded, folder, weights)

    def type_rules(self, loaded: LoadedModel, *, uneven: bool) -> TypeRules:
        """Linear layers alone, each of which transformers unpacks; experts are one tensor."""
        tree = every_unit(loaded.family, loaded.model).by_name
        matrices = [unit for unit in tree.values() if unit.kind in MATRICES]
        return TypeRules(untyped=frozenset(u.name for u in matrices if _unpacked(loaded, u, tree)))

    def file_layout(self, loaded: LoadedModel, *, uneven: bool) -> FileLayout:
        """That of a file with the dense model's names."""
        return safetensors_layout(loaded)

    def save_typed(
        self,
        model: PreTrainedModel,
        loaded: LoadedModel,
        folder: Path,
        weights: str | None,
        stored: StoredMatrices,
    ) -> None:
        """Writes what the inner format does, and puts words in the place of weights."""
        inner = self._inner(loaded, stored.candidate)
        inner.save(model, loaded, folder, weights)
        name_of = inner.name_of(loaded, stored.candidate)
        found = _pack(folder, stored, name_of)
        missing = stored.kinds.keys() - {name_of(name) for name in found}
        if missing:
            raise ExportError(
                f"{min(missing)} has another name in a checkpoint of compressed-tensors"
            )
        _write_config(folder, found)

    def measured(self, folder: Path, loaded: LoadedModel, candidate: Candidate) -> dict[str, int]:
        """The bytes of all tensors; with nothing in groups all costs of the inner format."""
        if not any(level.bits for _, level in candidate.levels):
            return self._inner(loaded, candidate).measured(folder, loaded, candidate)
        size = 0
        for file in folder.glob("*.safetensors"):
            tensors = load_file(file).items()
            size += sum(t.nbytes for name, t in tensors if not name.endswith(".weight_shape"))
        return {"weight_bytes": size}

    def _inner(self, loaded: LoadedModel, candidate: Candidate) -> Stock | ModelingFile:
        """The format of the rest."""
        stock = Stock()
        return stock if stock.obstacle(loaded, candidate) is None else self.uneven


def _unpacked(loaded: LoadedModel, unit: Unit, tree: Mapping[str, Unit]) -> str:
    """Why a matrix cannot be packed, or nothing."""
    if unit.owner and tree[unit.owner].kind == "expert":
        return "is of an expert: transformers has one tensor for all of these"
    module = loaded.model.get_submodule(unit.name)
    return "" if type(module) is torch.nn.Linear else f"is a {type(module).__name__}"


@once
def _reading_rows(loaded: LoadedModel) -> frozenset[str]:
    """The modules that read (tokens, in), of a forward pass, which a mere outline has none of."""
    found = set[str]()
    if loaded.model.device.type == "meta":
        return frozenset()

    def note(name: str, given: tuple[Any, ...]) -> None:
        if given and isinstance(given[0], Tensor) and given[0].ndim == 2:  # noqa: PLR2004
            found.add(name)

    with ExitStack() as stack, torch.no_grad():
        for name, module in loaded.model.named_modules():
            hook = module.register_forward_pre_hook(lambda _, given, name=name: note(name, given))
            stack.callback(hook.remove)
        ids = random_batch(loaded.family.task, loaded.model, sequences=1, tokens=2)
        loaded.family.hidden_states(loaded.model, ids)
    return frozenset(found)


def _pack(
    folder: Path, stored: StoredMatrices, name_of: Callable[[str], str]
) -> dict[str, StorageType]:
    """Replaces weights in the files of a folder.

    Returns:
        The type of each parameter that was replaced, by its name in the files.
    """
    found: dict[str, StorageType] = {}
    places: dict[str, str] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors: dict[str, Tensor] = {}
        for name, tensor in load_file(file).items():
            dense = name_of(name)
            if dense in stored.kinds:
                found[name] = stored.kinds[dense]
                tensors |= dict(_words(name, tensor, stored.parts[dense], found[name]))
            else:
                tensors[name] = tensor
        save_file(tensors, file, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, file.name)
    if (folder / INDEX).exists():
        index = read_json(folder / INDEX)
        files = [load_file(file) for file in folder.glob("*.safetensors")]
        size = sum(tensor.nbytes for tensors in files for tensor in tensors.values())
        metadata = index.get("metadata", {}) | {"total_size": size}
        write_json(folder / INDEX, index | {"metadata": metadata, "weight_map": places})
    return found


def _words(
    name: str, weight: Tensor, parts: Mapping[str, Tensor], kind: StorageType
) -> Iterator[tuple[str, Tensor]]:
    """The tensors in the place of a weight."""
    stem = name.removesuffix(".weight")
    yield f"{stem}.weight_scale", parts["scale"]
    if kind.rounds_inputs:
        yield name, parts["packed"]
        return
    yield f"{stem}.weight_packed", parts["packed"]
    yield f"{stem}.weight_shape", torch.tensor(weight.shape)


def _write_config(folder: Path, found: Mapping[str, StorageType]) -> None:
    """Adds the scheme of every matrix to config.json."""
    by_kind: dict[str, list[str]] = {}
    for name, kind in found.items():
        by_kind.setdefault(kind.name, []).append(name.removesuffix(".weight"))
    groups = {
        f"group_{number}": {
            "targets": sorted(targets),
            "output_activations": None,
            **_scheme(storage_type(kind)),
        }
        for number, (kind, targets) in enumerate(sorted(by_kind.items()))
    }
    formats = {str(group["format"]) for group in groups.values()}
    path = folder / "config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": formats.pop() if len(formats) == 1 else MIXED,
        "config_groups": groups,
        "ignore": [],
    }
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _scheme(kind: StorageType) -> dict[str, Any]:
    """What compressed-tensors says of a type."""
    common = {"num_bits": kind.bits, "type": "int", "symmetric": True}
    if kind.rounds_inputs:
        return {
            "weights": {**common, "strategy": "channel", "dynamic": False},
            "input_activations": {**common, "strategy": "token", "dynamic": True},
            "format": BYTES,
        }
    group = {"strategy": "group", "group_size": kind.block}
    return {
        "weights": {**common, **group, "dynamic": False},
        "input_activations": None,
        "format": PACKED,
    }
