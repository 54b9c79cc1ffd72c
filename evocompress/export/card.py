"""The README.md of a checkpoint."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from evocompress.core.foreign_text import as_code, fence_of
from evocompress.core.storage import stored_bits
from evocompress.core.types import DENSE, DROP, Candidate, Level, Unit
from evocompress.export.record import Record, StoredTensor
from evocompress.space.costs import Part, amount_text, level_of

SPARSE_NOTE = (
    "The zeros are stored as ordinary dense safetensors: they take the same space as other "
    "weights and make nothing faster on hardware or kernels without support for sparsity."
)
HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")

CACHE_NOTE = (
    "Keys and values were searched as caches of few bits give them back, one of each attention, "
    "which `evocompress heal` and `evaluate` compute with; a program has to be told, if it can. "
    "Attentions by type of their cache:"
)

WIDTH_NOTE = "Heads and channels that are left, where blocks are numbered as in the dense model:"


def model_card(
    record: Record,
    candidate: Candidate,
    parts: Sequence[Part],
    loading: str,
    notes: Sequence[str] = (),
    outer: Sequence[Unit] = (),
) -> str:
    """The text of README.md.

    Args:
        record: Where the checkpoint comes from, its costs, tensors and its candidate's id.
        candidate: What was done to the model.
        parts: The sub-layers and experts of the dense model.
        loading: Lines of Python that load the checkpoint.
        notes: Paragraphs about its format or weights.
        outer: The embedding and the head.
    """
    # A local path would be wrong as a hub id on any other machine.
    hub_id = HUB_ID.fullmatch(record.source) and not Path(record.source).exists()
    base = [f"base_model: {record.source}"] if hub_id else []
    header = ["---", "library_name: transformers", *base, "tags:", "- evocompress", "---"]
    paragraphs = [
        "\n".join(header),
        "# Compressed model",
        f"Made by evocompress from {as_code(record.source)} (fingerprint "
        f"`{record.model_fingerprint}`). Candidate `{record.id}`; `candidate.json` has every "
        "detail.",
        *_what_was_done(candidate, parts, outer),
        *_type_table(record.tensors),
        _cost_table(record),
        *notes,
        "## Loading",
        f"{fence_of(loading)}python\n{loading}\n{fence_of(loading)}",
    ]
    return "\n\n".join(paragraphs) + "\n"


def _what_was_done(candidate: Candidate, parts: Sequence[Part], outer: Sequence[Unit]) -> list[str]:
    levels = candidate.by_name
    text = ["## What was done", *_dropped(levels, parts), *_merged(levels)]
    if any(level.narrow for level in levels.values()):
        text += [WIDTH_NOTE, _width_table(levels, parts)]
    text += [*_zeros(levels, parts), *_types(levels, parts, outer), *_caches(levels)]
    return text if len(text) > 1 else [*text, "Nothing: this is the dense model."]


def _dropped(levels: Mapping[str, Level], parts: Sequence[Part]) -> Iterator[str]:
    dropped = [part.unit for part in parts if levels.get(part.unit.name) == DROP]
    for kind in dict.fromkeys(unit.kind for unit in dropped):
        units = [unit for unit in dropped if unit.kind == kind]
        if kind == "expert":
            yield _gone_experts(units)
            continue
        blocks = ", ".join(str(unit.block) for unit in units)
        yield f"Removed {kind} sub-layers of the dense model's blocks: {blocks}."


def _gone_experts(units: Sequence[Unit]) -> str:
    """Which experts are gone, with the rows of the router that chose them."""
    blocks: dict[int, list[str]] = defaultdict(list)
    for unit in units:
        blocks[unit.block].append(unit.name.rsplit(".", 1)[-1])
    gone = "; ".join(f"block {block}: {', '.join(own)}" for block, own in blocks.items())
    return f"Removed experts of the dense model, and their rows of the router: {gone}."


def _merged(levels: Mapping[str, Level]) -> Iterator[str]:
    for name, level in levels.items():
        if level.merge:
            whose = f"{as_code(name)}'s"
            yield f"The matrices of the next {level.merge} blocks were merged into {whose}."


def _width_table(levels: Mapping[str, Level], parts: Sequence[Part]) -> str:
    """A row for each block of the dense model."""
    cells: dict[int, list[str]] = defaultdict(list)
    for part in parts:
        if part.unit.kind == "expert":
            continue
        level = levels.get(part.unit.name, DENSE)
        left = part.left(DENSE if level.drop else level)
        numbers = [left.heads, left.kv_heads] if part.unit.kind == "attention" else [left.channels]
        cells[part.unit.block] += ["–" if level.drop else str(number) for number in numbers]
    rows = [f"| {block} | {' | '.join(row)} |" for block, row in cells.items()]
    kinds = {part.unit.kind for part in parts}
    heads = ["query heads", "key-value heads"] if "attention" in kinds else []
    columns = ["dense block", *heads, "FFN channels" if heads else "channels"]
    return "\n".join([f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}", *rows])


def _zeros(levels: Mapping[str, Level], parts: Sequence[Part]) -> Iterator[str]:
    zeros, weights = [], 0
    for part in parts:
        sparse = [unit for unit in part.matrices if levels.get(unit.name, DENSE).zeros]
        left = part.left(level_of(part, levels)).weights if sparse else {}
        zeros += [levels[unit.name].zeros_left(unit.numel, left[unit.name]) for unit in sparse]
        weights += sum(left[unit.name] for unit in sparse)
    if zeros:
        share = f"{sum(zeros):,} of their {weights:,} weights ({sum(zeros) / weights:.1%})"
        yield f"{len(zeros)} matrices have zeros: {share}. {SPARSE_NOTE}"


def _caches(levels: Mapping[str, Level]) -> Iterator[str]:
    counts = Counter(level.cache for level in levels.values() if level.cache)
    if counts:
        listed = ", ".join(f"{count} {name}" for name, count in counts.items())
        yield f"{CACHE_NOTE} {listed}."


def _types(
    levels: Mapping[str, Level], parts: Sequence[Part], outer: Sequence[Unit]
) -> Iterator[str]:
    """How many matrices have which type."""
    counts: Counter[str] = Counter()
    for part in parts:
        if not level_of(part, levels).drop:
            counts.update(levels.get(unit.name, DENSE).bits for unit in part.matrices)
    typed = [(unit, levels[unit.name].bits) for unit in outer if unit.name in levels]
    counts.update(name for _, name in typed)
    if found := sorted(filter(None, counts), key=stored_bits, reverse=True):
        listed = ", ".join(f"{counts[name]} {name}" for name in found)
        yield f"Matrices in coarser types: {listed}; `candidate.json` has the type of each."
    if typed:
        words = " and ".join(
            f"the {unit.role} {as_code(unit.name)} in {name}" for unit, name in typed
        )
        yield f"Among them {words}."


def _type_table(tensors: Mapping[str, StoredTensor]) -> Iterator[str]:
    """How many tensors of which role the files store in which type, and what these take."""
    found: dict[str, dict[str, list[int]]] = {}
    for name, tensor in tensors.items():
        kind = f"{tensor.type} (values of {tensor.values})" if tensor.values else tensor.type
        for row in (_role(name), "all"):
            found.setdefault(row, {}).setdefault(kind, []).append(tensor.bytes)
    if not found:
        return
    whole = found.pop("all")
    kinds = sorted(whole, key=lambda kind: sum(whole[kind]), reverse=True)
    yield "The tensors of the files, by role and type:"
    rows = [["tensors", *kinds]]
    rows += [
        [role, *(_amount(own.get(kind, [])) for kind in kinds)]
        for role, own in {**found, "all": whole}.items()
    ]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    yield "\n".join([lines[0], f"|{'---|' * len(rows[0])}", *lines[1:]])


def _role(name: str) -> str:
    """The last word of a tensor's name; of what is no weight, the last two."""
    words = [word for word in name.removesuffix(".weight").split(".") if not word.isdigit()]
    return ".".join(words[-1:] if name.endswith(".weight") else words[-2:])


def _amount(sizes: Sequence[int]) -> str:
    return f"{len(sizes)} ({sum(sizes) / 2**20:,.2f} MiB)" if sizes else ""


def _cost_table(record: Record) -> str:
    names = dict.fromkeys([*record.measured, *record.predicted])
    rows = ["| cost | predicted | measured |", "|---|---|---|"]
    for name in names:
        cells = (
            amount_text(name, costs[name]) if name in costs else ""
            for costs in (record.predicted, record.measured)
        )
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)
