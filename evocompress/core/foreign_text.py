"""Text from elsewhere, such as names of models and files, made harmless where it is shown.

A terminal obeys escape codes, a Markdown page headings and HTML; what comes with a model folder,
a run file or a message of another library must do neither.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

CONTROLS = ("Cc", "Cs", "Zl", "Zp")
"""Categories of Unicode that a terminal acts on, that no file can hold, or that end a line."""

TURNS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that turn the direction of what follows, so that it reads as something else."""

LISTED = 5
"""Names that are shown of a list of more than twice as many."""

LONGEST = 1000
"""Characters of a message that are shown."""

_HTML = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
_MARKDOWN = str.maketrans(_HTML | {sign: f"\\{sign}" for sign in "\\|`*_[]#!~"})


def is_control(character: str) -> bool:
    """Whether a character does something instead of being seen."""
    return character in TURNS or unicodedata.category(character) in CONTROLS


def controls(text: str, allowed: str = "") -> Iterator[str]:
    """The control characters of a text but for those that are allowed."""
    return (c for c in text if not c.isprintable() and c not in allowed and is_control(c))


def printable(text: str, allowed: str = "\n\t") -> str:
    r"""A text whose control characters, but the `allowed`, are written out, such as ``\x1b``."""
    if text.isprintable():
        return text
    return "".join(
        c.encode("unicode_escape").decode() if c not in allowed and is_control(c) else c
        for c in text
    )


def shortened(text: str, most: int = LONGEST) -> str:
    """A text without its middle where it is too long."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]} ... {text[-half:]} ({len(text):,} characters)"


def abridged(text: str) -> str:
    """A text with the first names only of long lists, such as transformers' of all model types."""

    def first(listed: re.Match[str]) -> str:
        names = listed.group().split(", ")
        return f"{', '.join(names[:LISTED])}, ... ({len(names)} in all)"

    return re.sub(rf"(?:[\w'\"`./<>-]+, ){{{2 * LISTED},}}[\w'\"`./<>-]+", first, text)


def in_markdown(text: str) -> str:
    """A text as one line of Markdown, in which it is nothing but text."""
    return printable(" ".join(text.split()), "").translate(_MARKDOWN)


def as_code(text: str) -> str:
    """A text as one span of code in Markdown."""
    line = printable(" ".join(text.split()), "")
    fence = fence_of(line, 1)
    pad = " " * (line.startswith("`") or line.endswith("`") or not line)
    return f"{fence}{pad}{line}{pad}{fence}"


def fence_of(text: str, least: int = 3) -> str:
    """A fence of backquotes, at least three, that is longer than any in a text."""
    return "`" * max(least, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
