"""Offers as tables of text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from evocompress.pipeline.offers.offers import ACTIONS, Offers

HEADING = ("type", "layout", *ACTIONS, "formats", "what does not go, and why")

CHANGES = {"zeros": "zeros", "block": "blocks less", "part": "sub-layers less", "width": "widths"}
"""What the changes that formats hold are called."""


def type_rows(found: Iterable[Offers]) -> list[tuple[str, ...]]:
    """A row for each type, below a heading."""
    return [HEADING, *map(_row, found)]


def _row(offers: Offers) -> tuple[str, ...]:
    return (
        offers.model_type,
        offers.layout,
        *(_share(offers, action) for action in ACTIONS),
        ", ".join(offers.holding) or "-",
        "; ".join(offers.reasons),
    )


def _share(offers: Offers, action: str) -> str:
    """Whether something can be done in every block, or in how many."""
    count = offers.actions.get(action, 0)
    if not count:
        return "-"
    return "yes" if count == offers.blocks else f"{count}/{offers.blocks}"


PAGE = """# What can be done to each type of model

This is what `evocompress models --markdown` prints: the types of the language models of
transformers, alone or with other parts that stay as they are, and those of encoders of texts and
images. Layout `own`: a family is written for the
type; `derived`: it is found by running a tiny model ([families.md](families.md#derived-families)).
Columns tell in how many of the blocks of the default config a part can be left out (attention, or
what mixes tokens in its place; MLP; block), narrowed (heads, channels) or given zeros; a format is
listed where it holds any of that ([export.md](export.md)).
"""


def markdown(found: Iterable[Offers]) -> list[str]:
    """The lines of the page of types in the documentation."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in type_rows(found)]
    return [*PAGE.splitlines(), "", *map(_line, [rows[0], ["---"] * len(HEADING), *rows[1:]])]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def model_rows(offers: Offers) -> list[tuple[str, ...]]:
    """What can be done to one model, below a heading, in words."""
    rows: list[tuple[str, ...]] = [("what", "where", "why not")]
    for action, words in ACTIONS.items():
        count = offers.actions.get(action, 0)
        where = f"in {count} of {offers.blocks} blocks" if count else "nowhere"
        rows.append((words, where, "" if count == offers.blocks else _why(offers, action)))
    for name, holding in offers.formats.items():
        held = ", ".join(CHANGES[change] for change in holding.changes) or "nothing"
        reason = f"format {name} {holding.reason}" if holding.reason else ""
        rows.append((f"format {name}", held, reason))
    return rows


def _why(offers: Offers, action: str) -> str:
    """Why something cannot be done in every block."""
    said = [reason for reason in offers.reasons if reason.startswith(action)]
    if said:
        return "; ".join(said)
    if action == "experts":
        return "the other MLPs are no mixtures of experts"
    return "the other blocks have no such part"
