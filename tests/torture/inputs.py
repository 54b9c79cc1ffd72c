"""Run files and overrides with mutations that no one would write, and some that people do."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import yaml
from numpy.random import Generator
from pydantic import BaseModel

from evocompress.core.config import RunConfig
from evocompress.search import SEARCHERS
from tests.torture.command import Running
from tests.torture.scene import Files, Scene, differences, settings
from tests.torture.verdict import Verdict

SAYS_SOMETHING = 30.0
"""Seconds within which a command has refused a run or has begun to work on it."""

STRANGE = (
    *("-1", "0", "1", "2", "1e308", "-1e308", ".inf", "-.inf", ".nan", "1e-320", "0.999999999"),
    *("100000", str(2**31), str(2**63), "10" * 40, "1_000", "0x7f", "0o17", "2:4", "1:60:60"),
    *("null", "~", "true", "no", "''", '" "', "[]", "{}", "[[]]", "[null]", "{a: 1}", "[1, 2]"),
    *("2024-13-45", "2024-11-28", "!!int abc", "!!binary x", "!!python/object:os.system x"),
    *(
        '"\\0"',
        '"a\\nb"',
        '"\\x1b[31mred"',
        "..",
        ".",
        "/",
        "../..",
        "~root",
        "a/b",
        "[bold]",
        "%s",
    ),
    *("[bold]", "&a [*a]", "*a", "datasets:", "datasets:::", "self", "meta", "cuda:99", "x" * 5000),
    *("[" * 300 + "]" * 300, "{a: " * 60 + "1" + "}" * 60, "🦙", "\u202e", "1.5", "3.0", "512"),
)
"""Values as they are written in YAML."""

STRANGE_OVERRIDES = ("=", "a", "=1", ".=1", "a.=1", "seed.x=1", "spce.x=1", "\x1b=1")


def mutated(scene: Scene, rng: Generator) -> Iterator[Verdict]:
    """Starts a search from a run file, or with an override, that has been changed at random."""
    scene.lay("start")
    before = scene.files()
    base = yaml.safe_dump(settings(scene.name), sort_keys=False)
    fields = list(_fields(RunConfig)) + [
        f"search.{name}"
        for searcher in SEARCHERS.built_in
        for name in SEARCHERS[searcher].Settings.model_fields
    ]
    ways = (_value, _value, _override, _override, _override, _text)
    while True:
        way = ways[int(rng.integers(len(ways)))]
        text, overrides = way(base, fields, rng)
        scene.lay("start")
        (scene.root / "trial.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
        yield _tried(scene, before, text, overrides)


def _tried(scene: Scene, before: Files, text: str, overrides: list[str]) -> Verdict:
    """Runs a search until it refuses or works; one that works is ended by SIGTERM."""
    running = Running(("search", "trial.yaml", *overrides), scene.root)
    done = running.wait_or(SAYS_SOMETHING, lambda: _works(scene))
    fault = "run file or override mutated"
    shown = overrides if overrides else [text[-2000:]]
    detail = f"{scene.name}: {shown!r}"[:2400]
    unclean = "" if done.clean or done.code == 143 else str(done)
    if any(len(line) > 2000 for line in done.output.splitlines()):
        unclean = unclean or f"a line of {len(done.output)} characters"
    if any(ord(c) < 32 and c not in "\n\t" for c in done.output):
        unclean = unclean or f"control characters on the console: {done.output[:300]!r}"
    left = differences(scene.files(), before) if done.code not in (0, 143) else []
    left = [name for name in left if not _allowed(name)]
    # A refusal after the run began leaves its folder, which --resume or another name goes on from.
    began = any(name.endswith("journal.jsonl") for name in left)
    wrong = f"refused, yet left {left[:5]}" if left and not began else ""
    if outside_of(scene):
        wrong = f"wrote outside of its folder: {outside_of(scene)}"
    return Verdict(fault, "", wrong, unclean, detail)


def outside_of(scene: Scene) -> list[str]:
    """What stands beside the folder of a scene that does not belong there."""
    mine = {scene.root.name, scene.kept.name}
    names = {entry.name for entry in os.scandir(scene.root.parent)}
    return sorted(name for name in names - mine if not name.endswith(".out"))


def _allowed(name: str) -> bool:
    """Caches and a finished library may stay: both are checked when they are read."""
    return name.startswith("cache/") or "library/" in name


def _works(scene: Scene) -> bool:
    runs = scene.root / "runs"
    return runs.is_dir() and any(runs.rglob("journal.jsonl"))


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted names of all settings."""
    for name, field in model.model_fields.items():
        yield prefix + name
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _fields(kind, f"{prefix}{name}.")


def _override(base: str, fields: list[str], rng: Generator) -> tuple[str, list[str]]:
    """One or two overrides with strange values."""
    chosen = rng.choice(fields, size=int(rng.integers(1, 3)), replace=False)
    made = [f"{key}={rng.choice(STRANGE)}" for key in chosen]
    if rng.uniform() < 0.1:
        made.append(
            str(rng.choice(["=", "a", "=1", ".=1", "a.=1", "seed.x=1", "spce.x=1", "\x1b=1"]))
        )
    return base, [one.replace("\0", "") for one in made]


def _value(base: str, fields: list[str], rng: Generator) -> tuple[str, list[str]]:
    """A run file in which one key has a strange value, is missing, misspelt or there twice."""
    lines = base.splitlines()
    number = int(rng.integers(len(lines)))
    key, colon, _ = lines[number].partition(":")
    match int(rng.integers(5)):
        case 0:
            del lines[number]
        case 1:
            lines.insert(number, lines[number])
        case 2:
            lines[number] = lines[number].replace(key.strip(), key.strip()[::-1], 1)
        case _:
            lines[number] = f"{key}{colon} {rng.choice(STRANGE)}"
    return "\n".join(lines), []


def _text(base: str, fields: list[str], rng: Generator) -> tuple[str, list[str]]:
    """A run file that is hardly YAML any more."""
    bombs: tuple[Callable[[], str], ...] = (
        lambda: base[: int(rng.integers(len(base)))],
        lambda: "[" * int(rng.integers(10, 20000)),
        lambda: _aliases(int(rng.integers(3, 12))),
        lambda: base + _aliases(9).replace("a0", "space"),
        lambda: base + "\n" + base,
        lambda: "".join(chr(int(rng.integers(0xD800))) for _ in range(200)),
        lambda: base.replace(":", "::", 1),
        lambda: base.replace("\n", "\r\n") + "\t- x",
        lambda: "",
        lambda: "--- 1\n--- 2\n",
        lambda: f"model: {{source: {'[' * 400}",
        lambda: f"{base}\n? [a, b]\n: c\n",
        lambda: f"{base}\n<<: {{seed: 3}}\n",
    )
    return bombs[int(rng.integers(len(bombs)))](), []


def _aliases(depth: int) -> str:
    """Lists of lists of ten, each by an alias: ten to the depth elements when printed."""
    lines = ["\na0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for number in range(1, depth):
        inner = ", ".join([f"*a{number - 1}"] * 10)
        lines.append(f"a{number}: &a{number} [{inner}]")
    return "\n".join(lines)
