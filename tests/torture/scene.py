"""What is attacked: a tiny model with a run of which every command has been run undisturbed."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.run_files import EVOPRESS, SIZES, TEXT
from tests.torture.command import Done, Running, copy, run

RUN = Path("runs/trial")
LIBRARY = Path("library")

STAGES: dict[str, tuple[object, ...]] = {
    "library": ("library", "build", "trial.yaml"),
    "search": ("search", "trial.yaml", "--resume"),
    "materialize": ("materialize", RUN),
    "heal": ("heal", RUN, "--resume"),
    "evaluate": ("evaluate", RUN),
    "report": ("report", RUN),
    "profile": ("profile", "trial.yaml"),
}
"""The commands of a run in their order, each such that it can be given again after a fault."""

CONSUMERS: dict[str, tuple[object, ...]] = {
    **{name: words for name, words in STAGES.items() if name != "materialize"},
    "materialize --out": ("materialize", RUN, "--out", "other"),
    "materialize --candidate": ("materialize", RUN, "--candidate", "uniform", "--out", "other"),
    "materialize --healed": ("materialize", RUN, "--healed", "--out", "other"),
    "library inspect": ("library", "inspect", LIBRARY, "--verify"),
    "plan": ("plan", "model", "--space", "trial.yaml", "--device", "h100"),
}
"""What reads the files of a finished run."""

NOT_COMPARED = ("log.txt", "trial.yaml", "report.html", "summary.md", "latency_table.json")
"""Files that tell of the time, and locks; pages are compared by what they are made from."""

LAST = list(STAGES)[-1]
"""The stage after which everything is there."""

TIMED = ("environment.json", "heal.json", "evaluation.json")
"""Files that tell the time beside other things; the lines that do are not compared,
nor the commit of the source, which may change under a long run."""

Files = dict[str, str]


@dataclass(frozen=True)
class Scene:
    """A folder with model, text, run and library, and copies of it after each command.

    Attributes:
        name: Of the scene.
        root: The folder that commands run in and attacks change.
        kept: Where the undisturbed copies are: ``start``, then one named after each stage.
        results: What each consumer prints and leaves where nothing was attacked.
    """

    name: str
    root: Path
    kept: Path
    results: dict[str, tuple[Done, Files]] = field(default_factory=dict)

    def lay(self, after: str) -> None:
        """Puts the folder into the state after a stage."""
        copy(self.kept / after, self.root)

    def files(self) -> Files:
        """What stands in the folder now."""
        return files_of(self.root)

    def files_after(self, stage: str) -> Files:
        """What stands in the folder after an undisturbed stage."""
        return files_of(self.kept / stage)

    def before(self, stage: str) -> str:
        """The state in which a stage begins."""
        names = ["start", *STAGES]
        return names[names.index(stage) - 1]

    def run(self, name: str, hook: Any = None) -> Done:
        """Runs a stage or consumer in the folder as it is."""
        return run(STAGES.get(name) or CONSUMERS[name], self.root, hook)

    def begin(self, name: str) -> Running:
        """Begins a stage or consumer in the folder as it is."""
        return Running(STAGES.get(name) or CONSUMERS[name], self.root)


def files_of(root: Path) -> Files:
    """The names of all files below a folder that are compared, with hashes of their contents."""
    paths = (Path(folder) / name for folder, _, names in os.walk(root) for name in names)
    return {
        str(path.relative_to(root)): _hash(path)
        for path in sorted(paths)
        if path.name not in NOT_COMPARED and not path.name.endswith(".lock")
    }


def differences(found: Files, expected: Files) -> list[str]:
    """The names of files that are missing, additional or have other contents."""
    return sorted(name for name in found | expected if found.get(name) != expected.get(name))


def _hash(path: Path) -> str:
    if path.is_symlink():
        return f"-> {os.readlink(path)}"
    content = path.read_bytes()
    if path.name in TIMED:
        content = re.sub(rb'"(started|seconds|git|xxh3)": [^\n]*', b"", content)
    return hashlib.sha256(content).hexdigest()


TABLE = "latency_table.json"
LATENCY: dict[str, Any] = {"prefill": [1, 8], "decode": [1, 8], "repeats": 3, "validation": 4}

SPARSE: dict[str, Any] = {
    "calibration": {"source": "text.txt"},
    "space": {"sparsity": {"target": 0.5, "step": 128, "levels": 3}},
    "search": EVOPRESS,
}
NARROW: dict[str, Any] = {
    "calibration": {"source": "self"},
    "space": {
        "width": {"channels": [0.75, 0.5], "multiple_of": 32},
        "drop": {"units": ["attention", "mlp"]},
        "budget": {"body_params": 0.7},
    },
    "proxy": {"targets": "disk"},
    "search": {"name": "auto", "tokens": 2000},
}
SETTINGS = {"sparse": SPARSE, "narrow": NARROW}
"""Runs that together read and write every kind of file."""


def make_scene(name: str, folder: Path) -> Scene:
    """Lays a scene and runs every command in it undisturbed.

    Args:
        name: A key of `SETTINGS`.
        folder: An empty folder for it.

    Raises:
        RuntimeError: A command fails though nothing was attacked.
    """
    scene = Scene(name, folder / "work", folder / "kept")
    scene.root.mkdir(parents=True)
    _in_a_child(scene.root / "model")
    (scene.root / "text.txt").write_text(TEXT)
    (scene.root / "trial.yaml").write_text(yaml.safe_dump(settings(name)))
    copy(scene.root, scene.kept / "start")
    for stage in STAGES:
        _must(scene.run(stage))
        copy(scene.root, scene.kept / stage)
    for consumer in CONSUMERS:
        scene.lay(LAST)
        scene.results[consumer] = (_must(scene.run(consumer)), scene.files())
    return scene


def settings(name: str) -> dict[str, Any]:
    """The run file of a scene."""
    chosen = SETTINGS[name]
    return {
        "model": {"source": "model"},
        "threads": 1,
        "library": {"path": str(LIBRARY)},
        "heal": {"steps": 4, "evaluate_every": 2, "validation_sequences": 2},
        "evaluate": {"latency": False},
        "latency": LATENCY | {"table": TABLE},
    } | (chosen | {"calibration": SIZES | chosen["calibration"]})


def _must(done: Done) -> Done:
    if done.code != 0:
        raise RuntimeError(f"without any attack: {done}")
    return done


def _in_a_child(folder: Path) -> None:
    """Makes the model in a process of its own, so that this one starts no threads of torch."""
    pid = os.fork()
    if pid == 0:
        from evocompress.testing.tiny import tiny_checkpoint

        tiny_checkpoint(folder)
        os._exit(0)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("the tiny model could not be made")
