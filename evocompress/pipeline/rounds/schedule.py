"""What each round is: a run like any other, on what the round before it healed.

After Adapt-Pruner (2502.03460) and DarwinLM (2502.07780), which compress step by step and train in
between. Every round keeps the same share of what it was given, so that the last one meets the
budget; zeros, which later rounds count as weights, rise to their target in the same proportion.
"""

from __future__ import annotations

from evocompress.core.config import RunConfig
from evocompress.core.errors import ConfigError
from evocompress.core.space_config import SpaceConfig
from evocompress.export import PROGRAMS
from evocompress.models.families.convolutional import Convolutional
from evocompress.pipeline.planning import outline
from evocompress.pipeline.run_folder import RunFolder
from evocompress.space.costs import TIMED

COUNTING_ZEROS = ("nonzeros", "matrix_nonzeros")


def rounds_of(config: RunConfig) -> list[RunConfig]:
    """The runs of all rounds, one after the other.

    Examples:
        >>> run = {"name": "r", "model": {"source": "tiny"}, "rounds": 2}
        >>> run["space"] = {"width": {}, "budget": {"body_params": 0.49}}
        >>> [one.space.budget for one in rounds_of(RunConfig.model_validate(run))]
        [{'body_params': 0.7}, {'body_params': 0.7}]
    """
    return [_round(config, number) for number in range(1, config.rounds + 1)]


def round_folder(config: RunConfig, number: int) -> RunFolder:
    """Where a round lies, of which the first has the number 1."""
    return RunFolder(config.folder / f"round-{number}")


def _round(config: RunConfig, number: int) -> RunConfig:
    """One round."""
    own = round_folder(config, number).path
    space = _cut(config.space, number, config.rounds)
    update = {"name": own.name, "runs": own.parent, "rounds": 1, "space": space}
    if number > 1:
        healed = round_folder(config, number - 1).healed_checkpoint
        teacher = config.heal.teacher or config.model.source
        update["model"] = config.model.model_copy(update={"source": str(healed)})
        update["heal"] = config.heal.model_copy(update={"teacher": teacher})
    return config.model_copy(update=update)


def _cut(space: SpaceConfig, number: int, rounds: int) -> SpaceConfig:
    """The space of a round, with its part of the budget."""
    budget = {name: bound ** (1 / rounds) for name, bound in space.budget.items()}
    sparsity = space.sparsity
    if sparsity is not None:
        target = 1 - (1 - sparsity.target) ** (number / rounds)
        sparsity = sparsity.model_copy(update={"target": target})
    return space.model_copy(update={"budget": budget, "sparsity": sparsity})


def check_schedule(config: RunConfig) -> None:
    """Refuses what a second round cannot do, before the first one is begun.

    Raises:
        ConfigError: A setting does not go with rounds.
        ModelError: The model cannot be compressed at all.
    """
    if config.rounds < 2:
        raise ConfigError(
            "rounds: one round is a search by itself: give rounds=2 or more, or run 'evocompress "
            "search', 'materialize' and 'heal'"
        )
    if wrong := _obstacle(config):
        raise ConfigError(f"rounds: {wrong}")
    model = config.model
    family = outline(model.source, model.dtype, trust_remote_code=model.trust_remote_code).family
    if isinstance(family, Convolutional):
        raise ConfigError(
            f"rounds: a compressed checkpoint of type {family.model_type!r} cannot be compressed "
            "again: search once, with the whole budget"
        )


def _obstacle(config: RunConfig) -> str | None:
    """The first setting that does not go with rounds, and what to do."""
    for name, bound in config.space.budget.items():
        if name in TIMED:
            return f"{name} is not measured where layers differ: bound flops or body_params"
        if name in COUNTING_ZEROS:
            return f"budget.{name} counts zeros: give sparsity.target, which rises by rounds"
        if bound > 1:
            return f"budget.{name} is an amount: give a fraction, of which each round cuts a part"
    if (config.search.model_extra or {}).get("objectives"):
        return "search.objectives asks for a front, and a round goes on with one winner"
    return _other_obstacle(config)


def _other_obstacle(config: RunConfig) -> str | None:
    """The same of all but budgets."""
    space = config.space
    if space.sparsity is not None and space.sparsity.pattern:
        return "a pattern of zeros has no steps: leave out sparsity.pattern, or search once"
    if space.bits is not None or space.cache is not None:
        return "bits, cache: a round begins with a model of its own types: search once"
    if space.width is not None and space.width.uniform:
        return "width.uniform ties layers, which differ after a round: leave it out"
    if space.drop is not None and space.drop.merge:
        return "drop.merge adds up blocks, which differ after a round: leave it out"
    if config.library.path is not None:
        return "library.path is one library, and each round has its own: leave it out"
    written = PROGRAMS[space.fits].preferred if space.fits in PROGRAMS else (space.fits,)
    if space.fits is not None and "hf" not in written:
        return f"space.fits={space.fits}: rounds write the format hf: leave it out"
    return None
