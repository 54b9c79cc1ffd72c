"""Consequences of a run's settings that its user may not see, said beforehand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from evocompress.core.config import HealConfig, HealLastConfig, ModelConfig, SpaceConfig
from evocompress.core.files import read_json
from evocompress.core.precision_config import BitsSpace
from evocompress.healing.cycles import tokens_that_pay
from evocompress.healing.law import HealingLaw
from evocompress.models.checkpoints import GGUF
from evocompress.pipeline.run_folder import RunFolder
from evocompress.space.costs import SERVED, TIMED
from evocompress.space.space import SearchSpace

OUTSIDE = 0.1
"""Share of a cost outside the blocks from which on it is always said what is left of the blocks."""

MIB = 2**20


def left_of_blocks(space: SearchSpace, *, timed: bool = True) -> Iterator[str]:
    """The share of the blocks that bounds leave, where it is small or much cost is outside of them.

    Where nothing outside the blocks is compressed, they must save all that a bound asks for. With
    `timed` the bounds in seconds count, too.
    """
    dense = space.cost_model.dense()
    typed = any(unit.kind == "outer" for unit in space.units)
    for name, bound in space.budget.items():
        cost = space.cost_model.costs[name]
        outside, saved = cost.base, cost.per_outer_byte or cost.per_file_byte
        if not outside or (name in TIMED and not timed) or (typed and saved):
            continue
        left = max(0.0, min(1.0, (bound - outside) / (dense[name] - outside)))
        if left >= 0.5 and outside < OUTSIDE * dense[name]:
            continue
        warning = "warning: " if left < 0.5 else ""
        yield (
            f"{warning}space.budget.{name}: {outside / dense[name]:.1%} of it is outside the "
            f"blocks (embedding, head{', buffers' * (name in SERVED)}), so "
            f"{bound / dense[name]:.1%} of the whole leaves {left:.1%} of the blocks"
            f"{_instead(name, left)}"
        )


def served(config: SpaceConfig, space: SearchSpace) -> Iterator[str]:
    """What serving the dense model takes as the run says, and the bound."""
    if config.memory is None:
        return
    costs, dense = space.cost_model.costs, space.cost_model.dense()
    weights, own = dense["weight_bytes"], costs["memory"].base - costs["weight_bytes"].base
    bound = space.budget.get("memory")
    batch = f", batch {config.memory.batch}" if config.memory.batch > 1 else ""
    yield (
        f"space.memory: {config.engine} takes {dense['memory'] / MIB:,.1f} MiB for the dense model "
        f"at {config.memory.context:,} tokens{batch}: {weights / MIB:,.1f} of weights, "
        f"{(dense['memory'] - weights - own) / MIB:,.1f} of cache and {own / MIB:,.1f} of its own"
        f"{'' if bound is None else f'; the bound is {bound / MIB:,.1f} MiB'}"
    )


def _instead(name: str, left: float) -> str:
    """Advice where little is left of the blocks."""
    if left >= 0.5:
        return ""
    own = {"params": "body_params", "nonzeros": "body_nonzeros"}.get(name)
    return ": raise the bound" + (f", or bound {own} instead" if own else "")


def typed_healing(space: SearchSpace) -> Iterator[str]:
    """What is counted of a healing where a search decides what it trains."""
    own = (any(level.bits for level in levels) for levels in space.levels)
    either = sum(
        has and any(not level.bits and not level.drop for level in levels)
        for has, levels in zip(own, space.levels, strict=True)
    )
    if either:
        yield (
            f"heal: {either} matrices may keep the model's own type, in which they are trained, "
            "or have a coarser one: the most is counted, that all keep it"
        )


def chosen_form(fits: str | None, form: str | None) -> Iterator[str]:
    """The format `form` that every candidate has, where the program that it `fits` decides it."""
    if fits is not None and fits != form:
        yield f"for {fits}: only candidates that format '{form}' can express are searched"


def missing_types(bits: BitsSpace | None, space: SearchSpace, form: str | None) -> Iterator[str]:
    """The types that were asked for and that no matrix can have."""
    if bits is None:
        return
    kept = {level.bits for levels in space.levels for level in levels}
    missing = [kind.name for kind in bits.coarser if kind.name not in kept]
    if missing:
        where = f" in format '{form}'" if form else ""
        yield f"space.bits: {', '.join(missing)}: no matrix can have such a type{where}"


def unpacked(config: ModelConfig, weight_bytes: int) -> Iterator[str]:
    """How much larger a GGUF file becomes, whose weights take `weight_bytes` once unpacked."""
    path = Path(config.source).expanduser()
    if config.source.endswith(GGUF) and path.is_file():
        size = path.stat().st_size
        yield (
            f"{path.name}: {size / MIB:,.0f} MiB of packed weights are unpacked to "
            f"{weight_bytes / MIB:,.0f} MiB, {weight_bytes / size:.1f} times as much, and what is "
            "written is as large for its weights: materialize --weights bfloat16 makes it smaller, "
            "and, after search --for llama.cpp, --weights q8_0"
        )


def short_healings(last: HealLastConfig | None, heal: HealConfig, length: int) -> Iterator[str]:
    """How many tokens the last candidates are healed with, in sequences of this length."""
    if last is None:
        return
    short = last.short(heal).at(length)
    each = short.sequences * length
    yield (
        f"search.heal_last: {last.candidates} candidates are healed with {each:,} tokens each, "
        f"{last.candidates * each:,} in all, before one of them is the winner"
    )


def foretold_healing(folder: RunFolder, config: HealConfig, length: int) -> Iterator[str]:
    """What more tokens bring by the law of the healing that a run has, if it has one.

    Args:
        folder: The run's.
        config: The healing that is planned.
        length: Tokens of a sequence.
    """
    known = read_json(folder.heal_report) if folder.heal_report.exists() else {}
    if known.get("law") is None:
        return
    law, tokens = HealingLaw(**known["law"]), known["tokens"]
    auto = config.tokens == "auto"
    wanted = tokens_that_pay(law, config) if auto else config.at(length).sequences * length
    yield (
        f"heal: by the law of {folder.healing}, which reached a validation KL of "
        f"{known['best_kl']:.4g} with {tokens:,} tokens, {wanted:,} tokens"
        f"{', where heal.tokens=auto would end,' if auto else ''} bring {law.kl(wanted):.4g} and "
        f"twice as many {law.kl(2 * wanted):.4g}"
    )
