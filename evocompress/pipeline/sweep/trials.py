"""From a sweep to its trials: ordinary runs that differ in the varied settings."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

from pydantic import BaseModel

from evocompress.core.config import RunConfig
from evocompress.core.config_file import put, validate
from evocompress.core.errors import ConfigError
from evocompress.pipeline.sweep.config import Range, SweepConfig

Settings = Mapping[str, Any]
"""{dotted key: value} of what a trial differs in, in the order of the sweep file."""

LIBRARIES = "libraries"

EQUALLY_HARD = ("seed", "search", "library")
"""Parts of a run that may differ between trials whose values are worth comparing."""

LATER_SETTINGS = {"bos", "field", "bits", "rounding"}
"""Settings of calibration, space and library that came when there were libraries already."""

LONGEST_NAME = 60


@dataclass(frozen=True)
class Trial:
    """A run of a sweep.

    Attributes:
        settings: What is special about it.
        config: The run; its folder lies in the sweep's.

    Examples:
        >>> run = {"model": {"source": "tiny"}, "space": {"drop": {}}}
        >>> sweep = SweepConfig(name="seeds", run=run, vary={"seed": [0, 1]})
        >>> [trial.config.seed for trial in samples(sweep)]
        [0, 1]
    """

    settings: Settings
    config: RunConfig

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return self.config.name


def trial_of(sweep: SweepConfig, settings: Settings) -> Trial:
    """The run that has these settings; the same ones always give the same run.

    Raises:
        ConfigError: A key does not exist, a value is wrong, or candidates would be healed.
    """
    data, what = deepcopy(sweep.run), f"trial {text_of(settings)}"
    # What is further up comes first, so that a whole sub-tree does not undo one of its keys.
    for key in sorted(settings, key=lambda key: key.count(".")):
        put(data, key, deepcopy(settings[key]), what)
    data |= {"name": trial_name(settings), "runs": str(sweep.folder), "executor": "local"}
    data.pop("ray", None)
    data["threads"] = data.get("threads") or max(1, int(sweep.ray.cpus))
    config = validate(RunConfig, data, what)
    if config.search.heal_last is not None:
        raise ConfigError(
            f"{what}: search.heal_last: a sweep compares searches by the proxy, before healing: "
            "leave it out, and set it for the run that you go on with"
        )
    if config.library.path is None:
        path = sweep.folder / LIBRARIES / _library_key(config)
        library = config.library.model_copy(update={"path": path})
        config = config.model_copy(update={"library": library})
    return Trial(settings, config)


def planned(sweep: SweepConfig) -> dict[str, Settings]:
    """{name: settings} of every combination of a grid, the last key changing fastest.

    Empty where Optuna has yet to propose.
    """
    if sweep.mode != "grid":
        return {}
    axes = [axis.values() if isinstance(axis, Range) else axis for axis in sweep.vary.values()]
    found = [dict(zip(sweep.vary, values, strict=True)) for values in product(*axes)]
    return {trial_name(settings): settings for settings in found}


def size_of(sweep: SweepConfig) -> int:
    """How many trials there will be."""
    if sweep.trials is not None:
        return sweep.trials
    axes = (axis.values() if isinstance(axis, Range) else axis for axis in sweep.vary.values())
    return prod(map(len, axes))


def samples(sweep: SweepConfig) -> Iterator[Trial]:
    """The trials of a grid; else one with each value and each end of a range at least once.

    Raises:
        ConfigError: A key does not exist, or a value is wrong.
    """
    if sweep.mode == "grid":
        yield from (trial_of(sweep, settings) for settings in planned(sweep).values())
        return
    axes = {
        key: (axis.low, axis.high) if isinstance(axis, Range) else axis
        for key, axis in sweep.vary.items()
    }
    first = {key: values[0] for key, values in axes.items()}
    for key, values in axes.items():
        yield from (trial_of(sweep, first | {key: value}) for value in values)


def group_of(settings: Settings) -> str:
    """What trials have in common whose values can be compared: all but seed, search and library.

    A value says how far a candidate is from its own dense model on its own text, so it compares
    trials of the same model, calibration, space and budget only.
    """
    return text_of(
        {key: value for key, value in settings.items() if key.split(".")[0] not in EQUALLY_HARD}
    )


def check_groups(sweep: SweepConfig) -> None:
    """Whether early stopping has anything to compare.

    Raises:
        ConfigError: No two trials are comparable, or a range makes all of them different.
    """
    if sweep.asha is None:
        return
    hard = [key for key in sweep.vary if key.split(".")[0] not in EQUALLY_HARD]
    endless = [key for key in hard if isinstance(sweep.vary[key], Range)]
    if sweep.mode == "optuna" and endless:
        raise ConfigError(
            f"asha compares trials that differ in seed, search or library only, and vary."
            f"{endless[0]} is a range: give a list of values, or leave asha out"
        )
    if len(hard) == len(sweep.vary):
        raise ConfigError(
            "asha compares trials that differ in seed, search or library only, and no two do: "
            "vary one of these, or leave asha out"
        )


def text_of(settings: Settings) -> str:
    """Settings on one line, such as ``seed=0, space.budget={params: 0.7}``."""
    return ", ".join(f"{key}={value_text(value)}" for key, value in settings.items())


def value_text(value: Any) -> str:
    """A value as YAML would have it on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {value_text(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(value_text, value)) + "]"
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return str(value)


def trial_name(settings: Settings) -> str:
    """A folder name: the settings in short, and a digest that tells apart what looks alike."""
    words = "-".join(f"{key.rsplit('.', 1)[-1]}-{word}" for key, word in _leaves(settings))
    short = re.sub(r"[^\w.]+", "-", words)[:LONGEST_NAME].strip("-.")
    return f"{short}-{_digest(settings)}"


def _leaves(tree: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Keys and values without what is above them, of paths the end only."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value)
        else:
            yield str(key), str(value).rstrip("/").rsplit("/", 1)[-1]


def _library_key(config: RunConfig) -> str:
    """The same for runs that can share a level library: the budget does not matter to it."""
    return _digest(
        {
            "model": config.model.model_dump(mode="json", exclude={"device_memory"}),
            "calibration": _settings(config.calibration),
            "space": _settings(config.space, "budget"),
            "library": _settings(config.library, "path", "cache_mib"),
        }
    )


def _settings(config: BaseModel, *ignored: str) -> dict[str, Any]:
    """Settings without later ones at their defaults, so that older libraries are found."""
    later = config.model_dump(mode="json", include=LATER_SETTINGS, exclude_defaults=True)
    return config.model_dump(mode="json", exclude=LATER_SETTINGS | {*ignored}) | later


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
