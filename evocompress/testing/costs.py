"""Contract suite of the cost models: additive over sub-layers, and never raised by compression."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Set
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from evocompress.core.architecture import Architecture
from evocompress.core.canonical import canonical
from evocompress.core.types import DROP, Candidate, Level, Unit
from evocompress.core.units import UnitTree
from evocompress.models.dummy_inputs import random_batch
from evocompress.models.families import Family
from evocompress.models.families.derivation.beside import CACHES, bytes_of_layer
from evocompress.space.costs import COSTS, ROUTED, SERVED, TIMED, TYPED, WRITTEN, CostModel
from evocompress.space.space import SearchSpace

LINEAR = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.convolution)


def check_described(model: CostModel) -> None:
    """Every described cost is there, positive for the dense model; all but latency suffice.

    A mixture of experts has costs of its own, and no latency.
    """
    dense = model.dense()
    mixture = any(part.routed for part in model.parts)
    known = [name for name in COSTS if name not in (*TYPED, *SERVED, *WRITTEN)]
    usual = [name for name in known if mixture or name not in ROUTED]
    untimed = [name for name in usual if name not in TIMED]
    assert list(dense) in ([untimed] if mixture else [usual, untimed])
    assert all(value > 0 for value in dense.values())


def check_drops_are_additive(model: CostModel, units: list[Unit]) -> None:
    """Removing several sub-layers saves the sum of what each saves alone."""
    names = [unit.name for unit in units if unit.kind in ("attention", "mlp")]
    tree = UnitTree(units)
    for mlp, experts in tree.experts.items():
        free = experts[tree.by_name[mlp].active :] if mlp not in names[::2] else ()
        names += [expert.name for expert in free]
    alone = [canonical({name: DROP}, units) for name in names]
    together = canonical(dict.fromkeys(names[::2], DROP), units)
    for name, values in model.of([Candidate(), together, *alone]).items():
        savings = values[0] - values[2:]
        assert values[1] == values[0] - savings[::2].sum(), name


def check_levels_never_cost_more(space: SearchSpace, rng: np.random.Generator) -> None:
    """A random genome with any one gene at another level that keeps less costs no more.

    Less is fewer heads, fewer in each group, fewer channels or more zeros; no dimension may
    be larger.
    """
    genes = space.encoding
    genome = genes.deactivate(rng.integers(0, genes.sizes)[None])[0]
    before = space.costs(genome[None])
    for gene, levels in enumerate(genes.levels):
        extents = np.array([_extent(level) for level in levels])
        smaller = np.flatnonzero((extents <= extents[genome[gene]]).all(axis=1))
        changed = np.tile(genome, (len(smaller), 1))
        changed[:, gene] = smaller
        for name, values in space.costs(changed).items():
            assert (values <= before[name]).all(), (name, genes.units[gene].name)


def check_last_levels_cost_least(space: SearchSpace) -> None:
    """The last level of a gene costs no more than any other, of anything."""
    genes = space.encoding
    for gene, levels in enumerate(genes.levels):
        genomes = np.tile(genes.default, (len(levels), 1))
        genomes[:, gene] = np.arange(len(levels))
        for name, values in space.costs(genomes).items():
            assert values[-1] == values.min(), name


def check_genomes_cost_as_candidates(space: SearchSpace, rng: np.random.Generator) -> None:
    """The costs of genomes are those of their candidates, counted one by one."""
    genomes = rng.integers(0, space.encoding.sizes, size=(8, len(space.units)))
    genomes = space.encoding.with_experts(genomes)
    counted = space.cost_model.of([space.candidate(genome) for genome in genomes])
    for name, values in space.costs(genomes).items():
        # Seconds are no whole numbers: their sums depend on the order by a rounding.
        tolerance = 1e-12 if name in TIMED else 0.0
        np.testing.assert_allclose(values, counted[name], rtol=tolerance, err_msg=name)


def _extent(level: Level) -> tuple[float, ...]:
    """How much a level keeps, in each dimension."""
    if level.drop:
        return (-np.inf,) * 4
    kept = (level.kv_groups, level.group_heads, level.channels)
    return (*(np.inf if count is None else float(count) for count in kept), -float(level.zeros))


def counted_flops(
    model: PreTrainedModel,
    architecture: Architecture,
    family: Family,
    length: int,
    without: Set[int] = frozenset(),
) -> int:
    """Operations of a sequence: those of matrices as torch counts them, of attention by pairs.

    Args:
        model: As it is run; its kernel becomes the plain one.
        architecture: Of the dense model.
        family: Of the dense model.
        length: Tokens, where the model does not tell them.
        without: Blocks without their attention.
    """
    if any(architecture.heads) or architecture.beside:
        model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**family.task.inputs(random_batch(family.task, model, 1, length), model.dtype))
    operators = counter.get_flop_counts()["Global"]
    linear = int(sum(operators.get(op, 0) for op in LINEAR))
    found, mixers = counter.get_flop_counts(), [*_mixers(model, family, architecture, without)]
    mixed = sum(_batched(found.get(name, {})) for name in (*mixers, *_linear(model, mixers)))
    mixed += _outside(model, family, counter)
    return linear + mixed + _attention_flops(architecture, architecture.tokens or length, without)


def _linear(model: PreTrainedModel, without: Collection[str]) -> Iterator[str]:
    """The linear modules, but those within some modules, as torch names them."""
    within = tuple(f"{name}." for name in without)
    for path, module in model.named_modules():
        name = f"{type(model).__name__}.{path}"
        if isinstance(module, torch.nn.Linear) and not name.startswith(within):
            yield name


def _batched(counts: Mapping[Any, int]) -> int:
    """Operations other than a product of two matrices; a linear module may have one of a batch."""
    return sum(int(flops) for op, flops in counts.items() if op not in LINEAR)


def _outside(model: PreTrainedModel, family: Family, counter: FlopCounterMode) -> int:
    """Operations of attention outside the blocks, as models of images have it in their poolers."""
    if family.task.reads_text:
        return 0
    counts = counter.get_flop_counts()
    names = [
        f"{type(model).__name__}.{family.block_names[i]}" for i in range(len(family.blocks(model)))
    ]
    counted = (*names, *_linear(model, names))
    return _batched(counts["Global"]) - sum(_batched(counts.get(name, {})) for name in counted)


def _mixers(
    model: PreTrainedModel, family: Family, architecture: Architecture, without: Set[int]
) -> Iterator[str]:
    """The blocks that mix tokens otherwise than by heads, as torch names them."""
    for block, own in enumerate(architecture.beside):
        if own and block not in without:
            yield f"{type(model).__name__}.{family.block_names[block]}"


def _attention_flops(architecture: Architecture, length: int, without: Set[int]) -> int:
    """Operations of attention, causal and windowed where it is, pair by pair.

    Where tokens are mixed otherwise than by heads, torch has counted all pairs: those are less.
    """
    pairs = {
        block: architecture.runs[block]
        * sum(
            query - (window or length) < key and (key <= query or not architecture.one_way)
            for query in range(length)
            for key in range(length)
        )
        for block, window in enumerate(architecture.windows)
        if block not in without
    }
    widths = architecture.head_widths or (2 * architecture.head_dim,) * len(architecture.heads)
    seen = {b: own.pair for b, own in enumerate(architecture.beside) if own}
    # Heads that blocks share are beside what each of them has.
    shared = {*seen} if architecture.shared else set()
    by_pair = {b: 0 if b in shared else 2 * architecture.heads[b] * widths[b] for b in pairs}
    every = {block: architecture.runs[block] * length**2 for block in pairs}
    return sum(
        (by_pair[b] + seen[b]) * (n - every[b]) if b in seen else by_pair[b] * n
        for b, n in pairs.items()
    )


def counted_decoding(model: PreTrainedModel, length: int) -> tuple[int, int]:
    """Operations of a token that is decoded and sees `length` with itself, and bytes of the cache.

    As torch counts them with a plain kernel, all pairs, the head once.
    """
    model.set_attn_implementation("eager")
    ids = torch.zeros(1, length, dtype=torch.long, device=model.device)
    with torch.no_grad():
        output = model(input_ids=ids[:, 1:], use_cache=True)
        key = next(key for key in CACHES if getattr(output, key, None) is not None)
        cache = output[key]
        with FlopCounterMode(display=False) as counter:
            model(input_ids=ids[:, :1], use_cache=True, **{key: cache})
    kept = sum(bytes_of_layer(cache, index) for index in range(len(cache.layers)))
    return int(counter.get_total_flops()), kept
