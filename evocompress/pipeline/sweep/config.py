"""What a sweep is: a base run, what is varied in it, and where the trials run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_serializer, model_validator

from evocompress.core.config import RayConfig
from evocompress.core.config_file import apply, shipped, validate
from evocompress.core.errors import ConfigError
from evocompress.core.fields import Name, Seed, Strict, Tokens, Whole
from evocompress.core.strict_yaml import read_yaml

RangeNumber = (
    Annotated[int, Field(strict=True, ge=-(10**15), le=10**15)]
    | Annotated[float, Field(strict=True, ge=-1e15, le=1e15)]
)

MOST_TRIALS = 10_000
"""Of a sweep, and values of a range."""

TAKEN = {
    "name": "every trial gets a name of its own",
    "runs": "trials lie in the sweep's folder",
    "executor": "a trial is evaluated in one process",
    "ray": "the sweep's own ray says where trials run",
    "threads": "the sweep's ray.cpus says how many a trial has",
    "heal": "no trial heals",
    "evaluate": "no trial is evaluated on held-out text",
}
"""Parts of a run's configuration that cannot be varied, and why."""


class Range(Strict):
    """Numbers from `low` to `high`, both included.

    Attributes:
        low: The smallest number.
        high: The largest number; whole numbers at both ends (and as step) give whole ones.
        step: Distance of neighbours, counted from `low`.
        log: Proposals are evenly spread over the logarithm; only with ``mode: optuna``.

    Examples:
        >>> Range(low=0.5, high=0.9, step=0.2).values()
        (0.5, 0.7, 0.9)
    """

    low: RangeNumber
    high: RangeNumber
    step: Annotated[RangeNumber, Field(gt=0)] | None = None
    log: bool = False

    @model_validator(mode="after")
    def _is_one(self) -> Range:
        if self.low >= self.high:
            raise ValueError("low must be below high")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log needs a low above 0 and no step")
        if (self.high - self.low) / (self.step or 1) > MOST_TRIALS and (self.step or self.whole):
            raise ValueError(f"a range has at most {MOST_TRIALS:,} values; give a larger step")
        return self

    @property
    def whole(self) -> bool:
        """Whether it holds whole numbers only."""
        ends = (self.low, self.high, 1 if self.step is None else self.step)
        return all(isinstance(end, int) for end in ends)

    def values(self) -> tuple[RangeNumber, ...]:
        """All numbers of a range that has a step, or of whole ones."""
        step = 1 if self.step is None else self.step
        # Half a millionth of a step keeps 0.1 + 2 * 0.1 from being beyond 0.3.
        count = int((self.high - self.low) / step + 5e-7) + 1
        numbers = (self.low + index * step for index in range(count))
        return tuple(numbers if self.whole else (round(number, 12) for number in numbers))


SweepAxis = Annotated[
    Annotated[tuple[Any, ...], Tag("values")] | Annotated[Range, Tag("range")],
    Discriminator(lambda value: "range" if isinstance(value, dict | Range) else "values"),
]
"""What one key is set to: some values, or a range of numbers."""


class AshaConfig(Strict):
    """Searches that are far behind are stopped (successive halving, Li et al. 2018, 1810.05934).

    Attributes:
        grace_tokens: Requested tokens before which no search is stopped.
        max_tokens: Requested tokens beyond which none is.
        reduction: At each rung one search in this many goes on, to this many times the tokens.

    Examples:
        >>> AshaConfig(grace_tokens=10_000, max_tokens=160_000).reduction
        4
    """

    grace_tokens: Tokens
    max_tokens: Tokens
    reduction: Annotated[Whole, Field(ge=2, le=1000)] = 4

    @model_validator(mode="after")
    def _has_a_rung(self) -> AshaConfig:
        if self.max_tokens < self.grace_tokens:
            raise ValueError("max_tokens must not be below grace_tokens")
        return self


class SweepConfig(Strict):
    """Many runs that differ in some settings.

    Attributes:
        name: Name of the sweep's folder below `runs`.
        runs: Folder of all runs.
        run: The base run, as a run file has it; a file name is replaced by what is in it.
        vary: {dotted key of a run: values or a range}; a value may be a whole sub-tree. Keys may
            be nested in the file, where the last of two that name the same thing counts.
        mode: ``grid`` runs every combination; ``optuna`` lets Optuna propose them one after the
            other, by what the earlier ones were worth.
        trials: How many Optuna proposes.
        seed: Of Optuna's sampler.
        asha: Stops searches that are far behind; ``None`` lets all go on to their end.
        ray: Where trials run: `workers` at a time, each with `cpus` and `gpus`.

    Examples:
        >>> run = {"model": {"source": "tiny"}, "space": {"drop": {}}}
        >>> SweepConfig(name="seeds", run=run, vary={"seed": [0, 1]}).mode
        'grid'
    """

    name: Name
    runs: Path = Path("runs")
    run: dict[str, Any]
    vary: Annotated[dict[str, SweepAxis], Field(min_length=1)]
    mode: Literal["grid", "optuna"] = "grid"
    trials: Annotated[Whole, Field(gt=0, le=MOST_TRIALS)] | None = None
    seed: Seed = 0
    asha: AshaConfig | None = None
    ray: RayConfig = RayConfig()

    @field_serializer("run", when_used="json")
    def _without_ray(self, run: dict[str, Any]) -> dict[str, Any]:
        """The base run as it is written: where it would run by itself does not matter here."""
        return {key: value for key, value in run.items() if key != "ray"}

    @property
    def folder(self) -> Path:
        """The sweep's folder."""
        return self.runs / self.name


def load_sweep(path: Path | str, overrides: Sequence[str] = ()) -> SweepConfig:
    """The sweep in a YAML file, changed by ``key.key=value`` overrides.

    ``run``, its ``space``, and a value that ``space`` is set to, may name another YAML file,
    relative to this one; the space in a run file is relative to that one. ``name`` defaults to
    the file's stem.

    Raises:
        ConfigError: A file is missing or is not YAML, or a key or value is wrong.
    """
    path = shipped(Path(path))
    data = read_yaml(path)
    # Files come first, so that the other overrides can change what is in them.
    first = [override for override in overrides if override.startswith(("run=", "run.space="))]
    apply(data, [override for override in first if override.startswith("run=")])
    if isinstance(data.get("run"), str):
        data["run"] = _run_file(path.parent / data["run"])
    apply(data, [override for override in first if override.startswith("run.space=")])
    if isinstance(data.get("run"), dict):
        _read_space(data["run"], path)
    apply(data, [override for override in overrides if override not in first])
    data.setdefault("name", path.stem)
    vary = data.get("vary")
    if vary is None and not data.keys() <= SweepConfig.model_fields.keys():
        validate(SweepConfig, data, str(path))
    if not isinstance(vary, dict) or not vary:
        raise ConfigError(f"{path}: nothing to vary: give vary: {{KEY: [VALUE, ...]}}")
    data["vary"] = {key: _axis(path, key, axis) for key, axis in _flat(vary)}
    sweep = validate(SweepConfig, data, str(path))
    _check(sweep, path)
    return sweep


def _run_file(path: Path) -> dict[str, Any]:
    """A run file as it is written, with its space in it."""
    data = read_yaml(path)
    _read_space(data, path)
    return data


def _read_space(run: dict[str, Any], path: Path) -> None:
    """Puts the space of a run in the place of its file's name, which is relative to `path`."""
    if isinstance(run.get("space"), str):
        run["space"] = read_yaml(path.parent / run["space"])


def _flat(vary: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their axes, where keys may be nested, too; only ranges are mappings."""
    for key, axis in vary.items():
        if isinstance(axis, dict) and axis and axis.keys().isdisjoint(("low", "high")):
            yield from _flat(axis, f"{above}{key}.")
        else:
            yield f"{above}{key}", axis


def _axis(path: Path, key: str, axis: Any) -> Any:
    """The values or the range of a key; files of spaces are read."""
    where = f"{path}: vary.{key}"
    part = str(key).split(".")[0]
    if part in TAKEN:
        raise ConfigError(f"{where}: cannot be varied: {TAKEN[part]}")
    if isinstance(axis, dict):
        return axis
    if not isinstance(axis, list):
        raise ConfigError(f"{where}: give a list of values, or a range such as {{low: 0, high: 3}}")
    if not axis:
        raise ConfigError(f"{where}: the list is empty; give values, or leave the key out")
    if key == "space":
        axis = [read_yaml(path.parent / v) if isinstance(v, str) else v for v in axis]
    seen = [json.dumps(value, sort_keys=True, default=str) for value in axis]
    if len(set(seen)) < len(seen):
        raise ConfigError(f"{where}: names a value twice; give each once")
    return axis


def _check(sweep: SweepConfig, path: Path) -> None:
    """Whether the parts of a sweep fit together."""
    if sweep.ray.storage is not None:
        raise ConfigError(
            f"{path}: ray.storage is for executor: ray; leave it out: all nodes must see the "
            "folder of a sweep, and its libraries lie there"
        )
    ranges = {key: axis for key, axis in sweep.vary.items() if isinstance(axis, Range)}
    if sweep.mode == "optuna":
        if sweep.trials is None:
            raise ConfigError(f"{path}: mode: optuna needs trials, the number of proposals")
        return
    if sweep.trials is not None:
        raise ConfigError(f"{path}: trials is for mode: optuna; a grid runs every combination")
    for key, axis in ranges.items():
        if axis.log or not (axis.whole or axis.step):
            raise ConfigError(
                f"{path}: vary.{key}: a grid needs numbers: give a list, or a range with a step"
            )
    axes = [axis.values() if isinstance(axis, Range) else axis for axis in sweep.vary.values()]
    if (trials := prod(map(len, axes))) > MOST_TRIALS:
        raise ConfigError(
            f"{path}: vary: {trials:,} combinations, at most {MOST_TRIALS:,} are run: vary less"
        )
