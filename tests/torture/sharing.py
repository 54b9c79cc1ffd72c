"""Two processes at once on everything that can be shared."""

from __future__ import annotations

import time
from collections.abc import Iterator

from numpy.random import Generator

from tests.torture.command import Done
from tests.torture.scene import CONSUMERS, LAST, STAGES, Scene, differences
from tests.torture.verdict import Verdict


def together(scene: Scene, rng: Generator) -> Iterator[Verdict]:
    """Runs two commands at once, the second a little later, and then each again."""
    names = list(CONSUMERS)
    while True:
        if rng.uniform() < 0.5:
            first = second = str(rng.choice(list(STAGES)))
            state = scene.before(first)
        else:
            first, second = (str(name) for name in rng.choice(names, size=2))
            state = LAST
        scene.lay(state)
        one = scene.begin(first)
        time.sleep(float(rng.choice([0.0, rng.uniform(0, 0.5)])))
        other = scene.begin(second)
        ended = (one.wait(), other.wait())
        detail = f"{scene.name}: {first} and {second} after {state}"
        yield _verdict(scene, (first, second), state, ended, detail)


def _verdict(
    scene: Scene, names: tuple[str, str], state: str, ended: tuple[Done, Done], detail: str
) -> Verdict:
    """Each ends rightly or refuses in one line, and given again leaves what it does alone."""
    again = [scene.run(name) for name in names]
    found = scene.files()
    scene.lay(state)
    for name in names:
        scene.run(name)
    left = differences(found, scene.files())
    failed = [str(done) for done in again if done.code != 0 and left]
    unclean = [str(done) for done in (*ended, *again) if not done.clean]
    if not any(done.code == 0 for done in ended):
        unclean.append(f"neither went on: {ended[0]}")
    wrong = f"together other than one after the other: {', '.join(left[:6])}" if left else ""
    return Verdict("two processes", "; ".join(failed), wrong, "; ".join(unclean), detail)
