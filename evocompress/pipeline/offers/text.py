"""Offers as tables of text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from evocompress.pipeline.offers.offers import ACTIONS, Offers

HEADING = ("type", "layout", *ACTIONS, "formats", "what does not go, and why")

CHANGES = {
    "zeros": "zeros",
    "block": "blocks less",
    "part": "sub-layers less",
    "even": "one width",
    "width": "widths",
}
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
type; `derived`: it is found by running a tiny model ([families.md](families.md#derived-families));
`matrices`: its blocks are not understood, and only these are known
([families.md](families.md#matrices-alone)).
Columns tell in how many of the blocks of the default config a part can be left out (attention, or
what mixes tokens in its place; MLP; block), narrowed (heads, channels), given zeros or stored
coarser ([bits.md](bits.md)); a format is listed where it holds any of that
([export.md](export.md)).
"""


def markdown(found: Iterable[Offers]) -> list[str]:
    """The lines of the page of types in the documentation."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in type_rows(found)]
    return [*PAGE.splitlines(), "", *map(_line, [rows[0], ["---"] * len(HEADING), *rows[1:]])]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


FORMATS_PAGE = """# What each format holds of each type of model

This is what `evocompress models --formats --markdown` prints: the types of which a model can be
compressed, and what each format ([export.md](export.md)) holds of that with the default config:
zeros in matrices; blocks less; a sub-layer less where the other one stays; one width for all
sub-layers of a kind; widths of their own. `all` is all that the type offers
([types.md](types.md)), and `-` nothing.
"""


def format_rows(found: Iterable[Offers]) -> list[tuple[str, ...]]:
    """A row for each type that something can be done to, with what each format holds."""
    able = [offers for offers in found if offers.formats]
    names = list(dict.fromkeys(name for offers in able for name in offers.formats))
    rows = [(one.model_type, *(_held(one, name) for name in names)) for one in able]
    return [("type", *names), *rows]


def _held(offers: Offers, name: str) -> str:
    """What a format holds of all that some format holds."""
    changes = offers.formats[name].changes if name in offers.formats else ()
    every = {change for holding in offers.formats.values() for change in holding.changes}
    words = ", ".join(CHANGES[change] for change in CHANGES if change in changes)
    return "all" if changes and every == {*changes} else words or "-"


def formats_markdown(found: Iterable[Offers]) -> list[str]:
    """The lines of the page of formats in the documentation."""
    heading, *rows = format_rows(found)
    return [*FORMATS_PAGE.splitlines(), "", *map(_line, [heading, ["---"] * len(heading), *rows])]


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
