"""Format ``compressed-tensors-vllm``: what vLLM reads of packed groups.

vLLM makes one tensor of all matrices of a sub-layer that read one input, as queries, keys and
values, or gate and up, which so have one type. It does so in its own classes and, by the graph of
a module, in its transformers backend, which reads layers that differ in format ``folded``.
"""

from __future__ import annotations

from collections import defaultdict
from typing import ClassVar

from evocompress.core.storage import storage_type
from evocompress.core.types import Candidate
from evocompress.export.compressed import CompressedTensors
from evocompress.export.folded import Folded
from evocompress.export.modeling_file import ModelingFile
from evocompress.export.running import Programs, Running
from evocompress.export.stored import TypeRules
from evocompress.models.families.base import block_matrices
from evocompress.models.families.outer import every_unit
from evocompress.models.loading import LoadedModel, once

KERNEL_BITS = (4, 8)
"""Of integers for which vLLM has kernels: of groups on GPUs Marlin's, on CPUs those of 4 bits
alone; of w8a8 CUTLASS's and oneDNN's."""

NOTE = (
    "vLLM computes matrices of w8a8 on GPUs and CPUs, those of groups of 4 and 8 bits on GPUs, and "
    "on a CPU groups of 4 bits alone, with AVX-512 and in half precision (`--dtype bfloat16` or "
    "`float16`). Of w8a8 it rounds inputs to steps of which 127 are a token's largest value, and "
    "transformers to those of which 127.5 are. On a CPU with AMX it rounds the inputs of groups of "
    "4 bits in bfloat16 to 8 bits as well, unless VLLM_CPU_INT4_W4A8 is 0."
)


class CompressedForVllm(CompressedTensors):
    """As `CompressedTensors`, where vLLM has a kernel for every tensor that it makes."""

    like: ClassVar[str] = "folded"
    uneven: ClassVar[ModelingFile] = Folded()
    flat: ClassVar[bool] = True
    programs: ClassVar[Programs] = {
        "transformers": CompressedTensors.programs["transformers"],
        "vllm": Running(
            "the model's own class, or vLLM's transformers backend where layers differ",
            families=tuple(f for f in Folded.programs["vllm"].families if f != "llava"),
            on_request=True,
            typed=True,
        ),
    }

    def obstacle(self, loaded: LoadedModel, candidate: Candidate) -> str | None:
        """Also bits without a kernel, and types that differ within a tensor of vLLM."""
        types = {name: level.bits for name, level in candidate.levels if level.bits}
        return (
            super().obstacle(loaded, candidate)
            or _without_kernel(types)
            or _differing(types, candidate, _rules(loaded))
        )

    def note(self, loaded: LoadedModel, candidate: Candidate) -> str:
        """Where vLLM has kernels, and the note of the inner format."""
        return " ".join(filter(None, (NOTE, super().note(loaded, candidate))))

    def type_rules(self, loaded: LoadedModel, *, uneven: bool) -> TypeRules:
        """Matrices of a sub-layer that read one input have one type, or none."""
        return _rules(loaded)


@once
def _rules(loaded: LoadedModel) -> TypeRules:
    words, members = _words(loaded), defaultdict[str, list[str]](list)
    for name, word in words.items():
        members[word].append(name)
    untyped = CompressedTensors().type_rules(loaded, uneven=True).untyped
    beside = {other for name in untyped for other in members[words[name]]}
    tied = {name: word for name, word in words.items() if len(members[word]) > 1}
    return TypeRules(tied, frozenset(beside))


def _words(loaded: LoadedModel) -> dict[str, str]:
    """For each matrix a word for its sub-layer, or expert, and what it reads."""
    units, names = every_unit(loaded.family, loaded.model).by_name, loaded.family.block_names
    found = {
        f"{names[index]}.{matrix.path}": f"{names[index]}.{matrix.owner}.{matrix.input}"
        for index, matrices in enumerate(block_matrices(loaded.family, loaded.model))
        for matrix in matrices
    }
    found |= {name: name for name, unit in units.items() if unit.kind == "outer"}
    return {name: word for name, word in found.items() if name in units}


def _without_kernel(types: dict[str, str]) -> str | None:
    for name, kind in types.items():
        bits = storage_type(kind).bits
        if bits not in KERNEL_BITS:
            return f"has no {kind}, as {name} has: vLLM has no kernel for {bits} bits, only 4 and 8"
    return None


def _differing(types: dict[str, str], candidate: Candidate, rules: TypeRules) -> str | None:
    """The obstacle of matrices of one tensor that have several types."""
    gone = tuple(f"{name}." for name, level in candidate.levels if level.drop)
    first: dict[str, str] = {}
    for name, word in rules.tied.items():
        other = first.setdefault(word, name)
        if types.get(name) != types.get(other) and not word.startswith(gone):
            kinds = f"{types.get(other) or 'dense'} and {types.get(name) or 'dense'}"
            return (
                f"cannot store {other} and {name} in {kinds}, because vLLM makes one tensor of "
                "them: search with this format, or vllm, as space.fits"
            )
    return None
