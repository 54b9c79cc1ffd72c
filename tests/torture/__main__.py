"""Attacks the program until the time is up, and prints what held.

    python -m tests.torture --minutes 30 [--seed 0] [--only kills damage] [--json FILE]

Every attack is made on tiny models in a temporary folder, in forked processes of this one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "COLUMNS": "200"}

from tests.torture import broken, damage, disks, inputs, kills, sharing  # noqa: E402
from tests.torture.scene import SETTINGS, Scene, make_scene  # noqa: E402
from tests.torture.verdict import COLUMNS, Attack, Table, Verdict  # noqa: E402

ATTACKS: dict[str, tuple[Attack, int]] = {
    "changes": (kills.at_changes, 2),
    "times": (kills.at_times, 2),
    "damage": (damage.damaged, 6),
    "inputs": (inputs.mutated, 6),
    "broken models": (broken.models, 2),
    "broken texts": (broken.texts, 1),
    "disks": (disks.limited, 2),
    "sharing": (sharing.together, 1),
}
"""Each attack, and how often it is made in one round."""


def attacks(scenes: Sequence[Scene], names: Sequence[str], seed: int) -> Iterator[Verdict]:
    """Verdicts without end, from all attacks and scenes in turns."""
    running = [
        (ATTACKS[name][0](scene, np.random.default_rng([seed, i, j])), ATTACKS[name][1])
        for j, name in enumerate(names)
        for i, scene in enumerate(scenes)
    ]
    while True:
        for attack, times in running:
            for _ in range(times):
                yield next(attack)


def torture(minutes: float, seed: int, names: Sequence[str], say: bool = True) -> Table:
    """Attacks until the time is up.

    Args:
        minutes: How long; one round of all attacks is made in any case.
        seed: Of every random choice.
        names: Of the attacks.
        say: Print what did not hold as it is found.
    """
    end = time.monotonic() + 60 * minutes
    preload()
    folder, owner = Path(tempfile.mkdtemp(prefix="torture-")), os.getpid()
    table = Table()
    try:
        scenes = [make_scene(name, folder / name) for name in SETTINGS]
        least = len(scenes) * sum(ATTACKS[name][1] for name in names)
        for verdict in attacks(scenes, names, seed):
            table.add(verdict)
            if verdict.bad and say:
                print(_told(verdict), file=sys.stderr, flush=True)
            if time.monotonic() > end and table.tried.total() >= least:
                break
    finally:
        if os.getpid() == owner:  # and not a forked process that a signal unwinds
            shutil.rmtree(folder, ignore_errors=True)
    return table


def preload() -> None:
    """Imports what every command imports, before the forks; nothing is computed yet."""
    import torch
    import transformers  # noqa: F401

    from evocompress.cli import commands  # noqa: F401

    torch.set_num_threads(1)


def _told(verdict: Verdict) -> str:
    found = [f"{name}: {getattr(verdict, name)}" for name in COLUMNS if getattr(verdict, name)]
    return "\n    ".join([f"- {verdict.fault} | {verdict.detail}", *found])


def main() -> int:
    """The command line; the exit status is 0 where nothing was lost, wrong or a traceback."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    table = torture(chosen.minutes, chosen.seed, chosen.only)
    print(table)
    if chosen.json:
        chosen.json.write_text(json.dumps(table.as_json(), indent=1) + "\n")
    return int(bool(table.bad))


if __name__ == "__main__":
    sys.exit(main())
