"""What each tensor of a written checkpoint is stored as, read from its own files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from evocompress.core.files import read_json
from evocompress.core.types import Candidate
from evocompress.export.record import StoredTensor
from evocompress.export.stored import typed_levels
from evocompress.export.weights import name_when_read
from evocompress.models.families.mixture import held_in
from evocompress.models.loading import LoadedModel

WORDS = ("_packed", "_scale", "_shape")
"""What compressed-tensors has in the place of a weight, behind its name."""


def tensors_of_files(folder: Path) -> dict[str, StoredTensor]:
    """The type and bytes of all tensors of a checkpoint, by their names in its files.

    Words, scales and shape of a matrix that compressed-tensors packed are one tensor, of the type
    that ``config.json`` says. The bytes sum to the data of the files, but for what fills up the
    places of a GGUF file's.

    Args:
        folder: With one GGUF file, or safetensors files.
    """
    found = dict(_in_gguf(folder))
    kinds = _packed_types(folder)
    for name, kind, size in _in_safetensors(folder):
        whole = name
        for word in WORDS:
            stem = name.removesuffix(word)
            whole = stem if stem in kinds else whole
        before = found.get(whole, StoredTensor("", 0))
        found[whole] = StoredTensor(kinds.get(whole, kind), before.bytes + size)
    return found


def with_rounded_values(
    tensors: Mapping[str, StoredTensor],
    loaded: LoadedModel,
    candidate: Candidate,
    dense_name: Callable[[str], str],
) -> dict[str, StoredTensor]:
    """Stored tensors of a format without coarser types, with those whose values they have.

    Args:
        tensors: What `tensors_of_files` found of safetensors files.
        loaded: The dense model.
        candidate: Whose matrices have types.
        dense_name: From the name of a parameter of the compressed model to that in the dense one.
    """
    types = {name: level.bits for name, level in typed_levels(candidate).items()}
    known = loaded.model.state_dict().keys()
    when_read = name_when_read(loaded.model)

    def values(name: str) -> str:
        dense = dense_name(name)
        dense = dense if dense in known else dense_name(when_read(name))
        above, within, part = dense.rpartition(".experts.")
        if dense in types or not within:
            return types.get(dense, "")
        own = tuple(f".{word}" for word in held_in(part))
        place = f"{above}{within}"
        every = {kind for n, kind in types.items() if n.startswith(place) and n.endswith(own)}
        return ", ".join(sorted(every))

    return {name: replace(tensor, values=values(name)) for name, tensor in tensors.items()}


def _in_gguf(folder: Path) -> Iterator[tuple[str, StoredTensor]]:
    for path in folder.glob("*.gguf"):
        from gguf import GGUFReader

        for tensor in GGUFReader(path).tensors:
            yield tensor.name, StoredTensor(tensor.tensor_type.name.lower(), int(tensor.n_bytes))


def _in_safetensors(folder: Path) -> Iterator[tuple[str, str, int]]:
    """Name, type and bytes of every tensor, as the headers of the files say."""
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, told in header.items():
            begin, end = told["data_offsets"]
            yield name, str(told["dtype"]).lower(), end - begin


def _packed_types(folder: Path) -> dict[str, str]:
    """The types of the weights that compressed-tensors packed, by their names."""
    config = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    groups = (config.get("quantization_config") or {}).get("config_groups", {})
    found: dict[str, str] = {}
    for group in groups.values():
        scheme, inputs = group["weights"], group["input_activations"]
        behind = f"a{inputs['num_bits']}" if inputs else f"g{scheme['group_size']}"
        kind = f"w{scheme['num_bits']}{behind}"
        found |= {f"{target}.weight": kind for target in group["targets"]}
    return found
