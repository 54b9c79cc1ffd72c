"""What an attack came to, and the table of all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from numpy.random import Generator

from tests.torture.command import Done
from tests.torture.scene import Scene, differences

COLUMNS = ("lost", "wrong", "tracebacks")


@dataclass(frozen=True)
class Verdict:
    """What one attack came to.

    Attributes:
        fault: What was done, as a row of the table.
        lost: What cannot be had again by giving the command again.
        wrong: What was done otherwise than without the attack, without a word.
        tracebacks: Where a user saw a traceback, a crash, a hang or more than one line.
        detail: How to see it again.
    """

    fault: str
    lost: str = ""
    wrong: str = ""
    tracebacks: str = ""
    detail: str = ""

    @property
    def bad(self) -> bool:
        """Whether the program did not hold."""
        return bool(self.lost or self.wrong or self.tracebacks)


Attack = Callable[[Scene, Generator], Iterator[Verdict]]
"""Attacks a scene again and again, each time with other random choices."""


def judged(fault: str, done: Done, again: Done | None, left: Iterable[str], detail: str) -> Verdict:
    """The verdict on an attacked command that is given again afterwards.

    Args:
        fault: The row of the table.
        done: The attacked command.
        again: The command given again, after what was attacked is as before; ``None`` where the
            attacked one succeeded.
        left: Files that differ from those of an undisturbed run in the end.
        detail: How to see it again.
    """
    left = list(left)
    last = done if again is None else again
    lost = wrong = ""
    if again is not None and again.code != 0 and left:
        lost = f"{again} (other than undisturbed: {', '.join(left[:6])})"
    elif left:
        wrong = f"after {' '.join(last.words)} other than undisturbed: {', '.join(left[:6])}"
    unclean = [str(one) for one in (done, again) if one is not None and not one.clean]
    return Verdict(fault, lost, wrong, "; ".join(unclean), detail)


class Table:
    """Counts verdicts and prints them."""

    def __init__(self) -> None:
        self.tried: Counter[str] = Counter()
        self.faults: dict[str, Counter[str]] = {name: Counter() for name in COLUMNS}
        self.bad: list[Verdict] = []

    def add(self, verdict: Verdict) -> None:
        """Counts one more."""
        self.tried[verdict.fault] += 1
        for name in COLUMNS:
            self.faults[name][verdict.fault] += bool(getattr(verdict, name))
        if verdict.bad:
            self.bad.append(verdict)

    def __str__(self) -> str:
        rows = [("fault", "tried", *COLUMNS)]
        for fault, tried in self.tried.items():
            rows.append((fault, str(tried), *(str(self.faults[c][fault]) for c in COLUMNS)))
        totals = [str(sum(self.faults[c].values())) for c in COLUMNS]
        rows.append(("all", str(self.tried.total()), *totals))
        width = max(len(row[0]) for row in rows)
        lines = [f"{row[0]:<{width}}" + "".join(f"{cell:>12}" for cell in row[1:]) for row in rows]
        return "\n".join(lines)

    def as_json(self) -> dict[str, object]:
        """The same as data, with every verdict that is not as it should be."""
        rows = {
            fault: {"tried": tried} | {name: self.faults[name][fault] for name in COLUMNS}
            for fault, tried in self.tried.items()
        }
        return {"rows": rows, "bad": [vars(verdict) for verdict in self.bad]}


def left_over(scene: Scene, stage: str) -> list[str]:
    """Files that differ from those after an undisturbed stage."""
    return differences(scene.files(), scene.files_after(stage))
