"""Writes the report: one HTML page that needs no network, and the same facts in Markdown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from plotly.io import to_html
from plotly.offline import get_plotlyjs

from evocompress.files import write_text
from evocompress.report.allocation import Grid, grid
from evocompress.report.columns import columns, number, percent
from evocompress.report.data import RunData, read_run
from evocompress.report.figures import (
    allocation_map,
    front_scatter,
    healing_curve,
    search_curve,
    varying_cost,
)
from evocompress.report.notes import cost_name, facts, headlines, notes

HTML_IN_MARKDOWN = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
MARKDOWN_SPECIAL = str.maketrans(
    HTML_IN_MARKDOWN | {sign: f"\\{sign}" for sign in "\\|`*_[]"} | {"\n": " "}
)


@dataclass(frozen=True)
class Section:
    """A titled figure with a sentence on how to read it; `figure` is plotly's HTML."""

    title: str
    text: str
    figure: Markup


def write_report(folder: Path) -> Path:
    """Writes ``report.html`` and ``summary.md`` into a run folder; what is missing is left out.

    Args:
        folder: The run folder, of a finished run or of one that is going on.

    Returns:
        The path of the page.

    Raises:
        RunError: The folder has no configuration or journal, or a file in it is damaged.
    """
    run = read_run(folder)
    content = _content(run)
    templates = _templates()
    page = templates.get_template("page.html.j2")
    html = page.render(content, sections=_sections(run), plotly_js=Markup(get_plotlyjs()))
    write_text(folder / "summary.md", templates.get_template("summary.md.j2").render(content))
    write_text(folder / "report.html", html)
    return folder / "report.html"


def _templates() -> Environment:
    """Templates of this folder; the page escapes everything that is not marked as HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(enabled_extensions=("html.j2",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["markdown"] = lambda text: str(text).translate(MARKDOWN_SPECIAL)
    return environment


def _content(run: RunData) -> dict[str, Any]:
    """What both templates show."""
    config = run.config
    rows = run.evaluation.rows if run.evaluation else ()
    return {
        "name": config.name,
        "facts": facts(run),
        "headlines": headlines(run.evaluation, config.space.budget) if run.evaluation else [],
        "rows": [row.name for row in rows],
        "columns": columns(rows),
        "allocation": _allocation_text(_winner_grid(run)),
        "notes": notes(run),
    }


def _sections(run: RunData) -> list[Section]:
    sections = [_search(run), _allocation(run), _front(run), _healing(run)]
    return [section for section in sections if section is not None]


def _value_name(run: RunData) -> str:
    if run.config.proxy.kind == "kl":
        return "KL to the dense model, nats/token"
    return "log-perplexity, nats/token"


def _search(run: RunData) -> Section | None:
    figure = search_curve(run.history, _value_name(run))
    if figure is None:
        return None
    text = (
        "The best candidate so far, by the proxy on calibration tokens at the fidelity where it "
        "was last compared; the value can rise when a candidate is compared on more tokens."
    )
    uniform = run.history.uniform
    if uniform is not None:
        text += f" The uniform allocation was measured on {uniform.sequences} sequences."
    return _section("Search", text, figure)


def _winner_grid(run: RunData) -> Grid | None:
    if run.winner is None or not run.units:
        return None
    return grid(run.units, run.winner.by_name())


def _allocation(run: RunData) -> Section | None:
    cells = _winner_grid(run)
    if cells is None:
        return None
    return _section("Allocation", _allocation_text(cells), allocation_map(cells))


def _allocation_text(cells: Grid | None) -> str:
    """The extremes of the allocation in a sentence."""
    if cells is None:
        return ""
    kept = [cell for cell in cells.present if not cell.level.drop]
    dropped = len(cells.present) - len(kept)
    text = f"{dropped} of {len(cells.present)} units are dropped. " if dropped else ""
    if not any(cell.zeros for cell in kept):
        return text + "The others are dense."
    least, most = min(kept, key=lambda c: c.zeros), max(kept, key=lambda c: c.zeros)
    return (
        f"{text}Zeros go from {percent(least.zeros)} in {least.unit} "
        f"to {percent(most.zeros)} in {most.unit}."
    )


def _front(run: RunData) -> Section | None:
    cost = varying_cost(run.front, run.config.space.budget)
    if cost is None:
        return None
    dense = run.winner.dense_costs.get(cost) if run.winner else None
    winner = run.winner.id if run.winner else None
    best = sum(point.non_dominated for point in run.front)
    text = (
        f"{number(len(run.front), 0)} candidates that were evaluated at the last fidelity, by "
        f"{cost_name(cost)}. {best} are on the front: none of the others is as good in value and "
        "in every cost of the budget, and better in one."
    )
    figure = front_scatter(run.front, cost, dense, winner, _value_name(run))
    return _section("Front", text, figure)


def _healing(run: RunData) -> Section | None:
    if not run.healing:
        return None
    text = (
        "Distillation of the dense model into the winner. Validation is on sequences kept from "
        "training, by which the checkpoint was chosen; they are not the held-out ones."
    )
    return _section("Healing", text, healing_curve(run.healing))


def _section(title: str, text: str, figure: go.Figure) -> Section:
    html = to_html(
        figure,
        config={"displayModeBar": False, "responsive": True},
        include_plotlyjs=False,
        full_html=False,
        default_height=f"{figure.layout.height}px",
        div_id=f"figure-{title.lower()}",
    )
    return Section(title, text, Markup(html))
