"""What mixers of tokens take beside their matrices, counted on the real model without its values.

Torch counts the operations of tensors that have shapes alone, so a model of the real sizes is run
at a few lengths. A law is solved from some of them and must hold at all others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from evocompress.core.beside import Beside
from evocompress.core.errors import one_line
from evocompress.models.families.branches import Matrix
from evocompress.models.families.derivation.block_kind import Kind, module_classes
from evocompress.models.families.derivation.family import Derived
from evocompress.models.families.derivation.residual_branch import ResidualBranch
from evocompress.models.families.derivation.structure import Unclear
from evocompress.models.families.derivation.tracing import FAILURES, by_default
from evocompress.models.families.shapes import matrix_shape
from evocompress.models.families.stand_ins import Recorder

CHUNKS = (16, 32, 64, 128, 256)
"""Numbers of tokens that may be computed together."""

LENGTHS = (12, 13, 14, 17, 33, 65, 100, 129, 257, 300, 520, 600)
"""Tokens of the sequences that are counted: of one, two and three of each of the chunks, which are
full to several degrees."""

CACHED = (3, 4, 6)
"""Tokens in the cache before one more is decoded."""

CACHES = ("past_key_values", "cache_params")
"""What models call their cache."""


def counted(family: Derived, skeleton: PreTrainedModel) -> Derived:
    """A family with what its mixers of tokens take beside their matrices, or why that is unknown.

    Args:
        family: Without that.
        skeleton: The real model, without values.
    """
    each, blocks = [family.at(index).kinds[0] for index in range(len(family.order))], family.blocks
    looks = [_look(kind, block) for kind, block in zip(each, blocks(skeleton), strict=True)]
    firsts = sorted({looks.index(look) for look in looks if look})
    if not firsts:
        return family
    try:
        laws = _beside(family, skeleton, firsts)
    except Unclear as error:
        reason = str(error)
    except (*FAILURES, NotImplementedError) as error:
        reason = f"without values it does not run: {one_line(error)}"
    else:
        known = [laws.get(looks.index(look)) for look in looks]
        return family.with_kinds(
            [
                kind if law is None else _taking(kind, law, _by_heads(family, skeleton, index))
                for index, (kind, law) in enumerate(zip(each, known, strict=True))
            ]
        )
    return family.with_kinds(
        [kind if kind.by_heads else replace(kind, uncounted=reason) for kind in each]
    )


def _by_heads(family: Derived, skeleton: PreTrainedModel, index: int) -> Beside:
    """The law of the heads of a block's attention; nothing without any that are counted."""
    kind, block = family.at(index).kinds[0], family.blocks(skeleton)[index]
    if kind.heads is None:
        return Beside()
    heads, kv_heads, _ = family.heads(skeleton.config, index)
    latent, width = family.cached_and_width(skeleton, index)
    own = (heads if kind.heads.repeated else kv_heads) * width
    # One more token makes keys and values of all that is cached.
    matrices = kind.parts["attention"].matrices
    anew = sum(2 * prod(matrix_shape(block, matrix)) for matrix in matrices if matrix.of_cache)
    pair, kept = 2 * heads * width, (latent or own) if kind.attends else 0
    return Beside(pair=pair, seen=pair + anew, decoded=-anew, kept=kept)


def _taking(kind: Kind, law: Beside, by_heads: Beside) -> Kind:
    """A kind of block with the law of its mixer, but for what its heads take."""
    if kind.heads:
        less = {f.name: getattr(law, f.name) - getattr(by_heads, f.name) for f in fields(law)}
        rest = Beside(**{**less, "size": law.size})
        if replace(rest, size=1) == Beside():
            return kind
        if kind.heads.further and min(less.values()) >= 0:
            return replace(kind, beside=rest)
    parts = {**kind.parts, "attention": kind.parts["attention"].whole}
    return replace(kind, parts=parts, heads=None, beside=law)


def _look(kind: Kind, block: nn.Module) -> str:
    """What the operations of a mixer follow from; empty where heads can be cut, and where none is.

    With heads that cannot be cut it may still take more than those.
    """
    part = kind.parts.get("attention")
    if part is None or (kind.by_heads and part.settings):
        return ""
    cores = map(block.get_submodule, part.branch.cores)
    shapes = [list(parameter.shape) for core in cores for parameter in core.parameters()]
    return json.dumps([module_classes(block), shapes])


class Mixer:
    """A sub-layer of a block, and what else the block has that is left out meanwhile.

    Args:
        block: Of a model without values.
        branch: The sub-layer that mixes tokens.
        matrices: Of that.
        others: The other sub-layers.
    """

    def __init__(
        self,
        block: nn.Module,
        branch: ResidualBranch,
        matrices: Sequence[Matrix],
        others: Sequence[ResidualBranch],
    ) -> None:
        self.block = block
        self.cores = [block.get_submodule(path) for path in branch.cores]
        self.linear = sum(2 * prod(matrix_shape(block, matrix)) for matrix in matrices)
        self.others = {path: m for other in others for path, m in other.removal(block).items()}
        self.flops = 0

    @contextmanager
    def alone(self, counter: Callable[[], int]) -> Iterator[None]:
        """Notes the operations of the sub-layer, for a while, in a block without the others."""

        def begin(*_: Any) -> None:
            self.flops -= counter()

        def end(*_: Any) -> None:
            self.flops += counter()

        self.flops = 0
        with ExitStack() as stack:
            for path, module in self.others.items():
                stack.callback(self.block.set_submodule, path, self.block.get_submodule(path))
                self.block.set_submodule(path, module)
            for core in self.cores:
                stack.callback(core.register_forward_pre_hook(begin).remove)
                stack.callback(core.register_forward_hook(end).remove)
            yield


def _beside(
    family: Derived, skeleton: PreTrainedModel, indices: Sequence[int]
) -> dict[int, Beside]:
    """What the mixers of some blocks take beside their matrices.

    Raises:
        Unclear: No law of the length is known that they follow.
    """
    skeleton.eval().requires_grad_(False)
    blocks = family.blocks(skeleton)
    mixers = {index: _mixer(family.at(index).kinds[0], blocks[index]) for index in indices}
    with _others_passing(blocks, family.among, mixers), by_default(torch.float32):
        run = partial(_run, skeleton, mixers)
        decoded = {length: run(length, decode=True) for length in CACHED}
        counts = {length: run(length)[0] for length in LENGTHS}
        skeleton.bfloat16()
        halved = {length: run(length, decode=True)[1] for length in CACHED}
        skeleton.float()
    found = {}
    for index, mixer in mixers.items():
        own = {length: flops[index] - mixer.linear * length for length, flops in counts.items()}
        steps = {length + 1: flops[index] - mixer.linear for length, (flops, _) in decoded.items()}
        kept = {length + 1: sizes[index] for length, (_, sizes) in decoded.items()}
        half = {length + 1: sizes[index] for length, sizes in halved.items()}
        found[index] = law(own, steps, kept, half)
    return found


def _mixer(kind: Kind, block: nn.Module) -> Mixer:
    """The attention of a kind of block."""
    own = kind.parts["attention"]
    others = [part.branch for name, part in kind.parts.items() if name != "attention"]
    return Mixer(block, own.branch, own.matrices, others)


@contextmanager
def _others_passing(
    blocks: nn.ModuleList, among: int, mixers: Mapping[int, Mixer]
) -> Iterator[None]:
    """Blocks without those in which nothing is to be counted, for a while."""
    originals = list(blocks)
    try:
        for index, block in enumerate(originals):
            if index not in mixers:
                blocks[index] = Recorder(block, among)
        yield
    finally:
        for index, block in enumerate(originals):
            blocks[index] = block


def _run(
    skeleton: PreTrainedModel, mixers: Mapping[int, Mixer], length: int, *, decode: bool = False
) -> tuple[dict[int, int], dict[int, int]]:
    """The operations of each mixer in a forward pass, and the bytes it keeps.

    Args:
        skeleton: The model.
        mixers: By the index of their block.
        length: Tokens of the sequence.
        decode: The pass is that of one token more, with a cache.
    """
    ids = torch.zeros(1, length, dtype=torch.long, device="meta")
    given: dict[str, Any] = {}
    with FlopCounterMode(display=False) as counter, ExitStack() as stack:
        for mixer in mixers.values():
            stack.enter_context(mixer.alone(counter.get_total_flops))
        # Without a cache masks are made in another way, which wants values.
        output = skeleton(input_ids=ids, use_cache=True)
        if decode:
            for mixer in mixers.values():
                mixer.flops = 0
            given = _cache(output)
            skeleton(input_ids=ids[:, :1], use_cache=True, **given)
    flops = {index: mixer.flops for index, mixer in mixers.items()}
    return flops, {
        index: bytes_of_layer(cache, index) for cache in given.values() for index in mixers
    }


def _cache(output: Any) -> dict[str, Any]:
    """The cache that a model made, under its name."""
    for name in CACHES:
        if hasattr(getattr(output, name, None), "layers"):
            return {name: getattr(output, name)}
    raise Unclear("it yields no cache whose layers are known")


def bytes_of_layer(cache: Any, index: int) -> int:
    """The bytes that a cache keeps for a layer, in any of its lists with an entry for each."""
    lists = [own for own in vars(cache).values() if isinstance(own, list)]
    held = [own[index] for own in lists if index < len(own)]
    values = [one for layer in held for one in _parts_of(layer)]
    every = (list(own.values()) if isinstance(own, dict) else [own] for own in values)
    tensors = (one for own in every for one in own if isinstance(one, Tensor) and one.ndim)
    return sum(tensor.nbytes for tensor in tensors)


def _parts_of(layer: Any) -> list[Any]:
    """What a cache keeps for a layer: a tensor, or the attributes of an object."""
    own = isinstance(layer, Tensor) or not hasattr(layer, "__dict__")
    return [layer] if own else list(vars(layer).values())


def law(
    prefill: Mapping[int, int],
    steps: Mapping[int, int],
    single: Mapping[int, int],
    half: Mapping[int, int],
) -> Beside:
    """The law that all counts follow.

    Args:
        prefill: Operations by length.
        steps: Those of a token by the number of tokens it sees, itself among them.
        single: Bytes that are kept of as many tokens in float32.
        half: The same in bfloat16.
    """
    decoded, seen = _line(steps)
    pairs = list(zip(_line(single), _line(half), strict=True))
    state, kept = ((whole - less) // 2 for whole, less in pairs)
    own_state, own_kept = (2 * less - whole for whole, less in pairs)
    for form in (form for size in CHUNKS for form in _prefills(prefill, size)):
        found = replace(
            form,
            **{"decoded": decoded, "seen": seen, "state": state, "kept": kept},
            **{"state_bytes": own_state, "kept_bytes": own_kept},
        )
        if all(found.prefill(n) + found.pair * n**2 == flops for n, flops in prefill.items()):
            return found
    raise Unclear("its operations follow no known law of the length")


def _prefills(counted: Mapping[int, int], size: int) -> Iterator[Beside]:
    """The laws of some counts, were `size` tokens computed together."""
    first, second, third = (counted[length] for length in LENGTHS[:3])
    pair = (third - 2 * second + first) // 2
    token = second - first - pair * (2 * LENGTHS[0] + 1)
    chunks = {-(-n // size): flops - token * n - pair * n**2 for n, flops in counted.items()}
    squared = (chunks[3] - 2 * chunks[2] + chunks[1]) // 2
    chunk = chunks[2] - chunks[1] - 3 * squared
    once = chunks[1] - chunk - squared
    yield Beside(once, token, size, chunk, squared, pair)
    start = first - token * LENGTHS[0] - pair * LENGTHS[0] ** 2
    yield Beside(start, token, size, within=pair)


def _line(values: Mapping[int, int]) -> tuple[int, int]:
    """Where a line through all values begins, and its slope."""
    (first, low), (second, high), *_ = values.items()
    slope = (high - low) // (second - first)
    start = low - slope * first
    if any(start + slope * place != value for place, value in values.items()):
        raise Unclear("what it takes for a decoded token is not linear in the tokens of the cache")
    return start, slope
