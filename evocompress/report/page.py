"""Writes the report: one HTML page that needs no network, and the same facts in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from plotly.io import to_html
from plotly.offline import get_plotlyjs

from evocompress.core.files import write_text
from evocompress.core.foreign_text import in_markdown, printable
from evocompress.core.leftovers import clear_written
from evocompress.core.types import Level
from evocompress.evaluation.proxies import meaning_of
from evocompress.report.allocation import UnitGrid, unit_grid
from evocompress.report.columns import number
from evocompress.report.data import RunData, read_run, spanning_costs
from evocompress.report.figures import healing_curve, search_curve
from evocompress.report.front import choice, detailed, embedded, front_scatter, varying_costs
from evocompress.report.healing import healing_facts
from evocompress.report.maps import allocation_map
from evocompress.report.notes import allocation_text, facts, front_text, headlines, notes
from evocompress.report.stored import stored_map, stored_text
from evocompress.report.tables import last_candidates, tables


@dataclass(frozen=True)
class Section:
    """A titled figure with a sentence on how to read it; `figure` and `below` are HTML."""

    title: str
    text: str
    figure: Markup
    below: Markup = Markup("")


def write_report(folder: Path) -> Path:
    """Writes ``report.html`` and ``summary.md`` into a run folder; what is missing is left out.

    The run need not have ended.

    Returns:
        The page.

    Raises:
        RunError: The folder has no configuration or journal, or a file in it is damaged.
    """
    run = read_run(folder)
    content = _content(run)
    found = templates()
    page = found.get_template("page.html.j2")
    html = page.render(content, sections=_sections(run), plotly_js=Markup(get_plotlyjs()))
    summary, path = folder / "summary.md", folder / "report.html"
    clear_written(summary, path)
    write_text(summary, found.get_template("summary.md.j2").render(content))
    write_text(path, html)
    return path


def templates() -> Environment:
    """Templates of this folder; the page escapes everything that is not marked as HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(enabled_extensions=("html.j2",)),
        undefined=StrictUndefined,
        finalize=_without_controls,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["markdown"] = lambda text: in_markdown(str(text))
    return environment


def _without_controls(value: Any) -> Any:
    """What a template shows; text from elsewhere without what a viewer would obey."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else printable(value)


def _content(run: RunData) -> dict[str, Any]:
    """What both templates show."""
    config = run.config
    evaluation = run.evaluation
    return {
        "name": config.name,
        "facts": facts(run),
        "headlines": headlines(evaluation, spanning_costs(run)) if evaluation else [],
        "tables": [*(tables(evaluation) if evaluation else []), *last_candidates(run.winner)],
        "allocation": allocation_text(_winner_grid(run)),
        "notes": notes(run),
    }


def value_name(run: RunData, proxy: str) -> str:
    """What a proxy's value is; that of a classifier is of a sequence, not of a token."""
    per_token = run.architecture is None or run.architecture.causal
    meaning = meaning_of(proxy)
    return meaning if per_token else meaning.removesuffix("/token")


def _sections(run: RunData) -> list[Section]:
    sections = [_search(run), _allocation(run), _stored(run), _front(run), _healing(run)]
    return [section for section in sections if section is not None]


def _search(run: RunData) -> Section | None:
    figure = search_curve(run.history, value_name(run, run.config.proxy.kind))
    if figure is None:
        return None
    text = (
        "The best candidate so far, by the proxy on calibration tokens. Only what was measured on "
        "the same tokens is compared: every value is the last candidate's plus the mean difference "
        "to it on the sequences that both were measured on."
    )
    uniform, apart = run.history.uniform, run.history.apart
    if uniform is not None:
        text += f" With the uniform allocation these were {uniform.sequences}."
    if apart:
        text += f" {number(apart, 0)} steps are not drawn: they share no tokens with the last."
    return _section("Search", text, figure)


def _winner_grid(run: RunData) -> UnitGrid | None:
    if run.winner is None or not run.units:
        return None
    return unit_grid(run.units, run.winner.by_name(), run.architecture)


def _allocation(run: RunData) -> Section | None:
    cells = _winner_grid(run)
    if cells is None or _only_typed(run):
        return None
    return _section("Allocation", allocation_text(cells), allocation_map(cells))


def _only_typed(run: RunData) -> bool:
    """Whether all that a winner does is to store matrices in coarser types."""
    levels = run.winner.by_name().values() if run.winner else ()
    return any(levels) and all(level == Level(bits=level.bits) for level in levels)


def _stored(run: RunData) -> Section | None:
    if run.winner is None or not run.units:
        return None
    levels = run.winner.by_name()
    figure = stored_map(run.units, levels)
    if figure is None:
        return None
    return _section("Stored types", stored_text(run.units, levels), figure)


def _front(run: RunData) -> Section | None:
    winner, spans = run.winner, spanning_costs(run)
    costs = varying_costs(run.front, spans)
    if not costs:
        return None
    figures = [
        front_scatter(
            run.front,
            cost,
            winner.dense_costs.get(cost) if winner else None,
            winner.id if winner else None,
            value_name(run, run.config.proxy.kind),
            knee=winner.front.knee if winner and winner.front else None,
            line=spans == (cost,),
        )
        for cost in costs
    ]
    drawn = [
        figure_html(figure, f"figure-front{f'-{place}' if place else ''}")
        for place, figure in enumerate(figures)
    ]
    text = front_text(run, costs)
    return Section("Front", text, Markup("").join(drawn), below=_layers(run, costs))


def _layers(run: RunData, costs: Sequence[str]) -> Markup:
    """The layers of one candidate of the front; a click or a list chooses another candidate."""
    winner = run.winner
    dense = winner.dense_costs if winner else {}
    shown = [point for point in run.front if point.id in run.candidates]
    shown = detailed(shown, winner.id if winner else None)
    if not run.units or not shown:
        return Markup("")
    maps = {
        point.id: allocation_map(
            unit_grid(run.units, run.candidates[point.id].by_name, run.architecture)
        )
        for point in shown
    }
    template = templates().get_template("layers.html.j2")
    listed = sorted(shown, key=lambda point: -point.costs[costs[0]])
    html = template.render(
        choices=[(point.id, choice(point, costs, dense)) for point in listed],
        chosen=shown[0].id,
        figure=figure_html(maps[shown[0].id], "figure-layers"),
        maps=embedded(maps),
    )
    return Markup(html)


def _healing(run: RunData) -> Section | None:
    if not run.healing:
        return None
    text = (
        "Distillation of the dense model into the winner. Validation is on sequences kept from "
        "training, by which the checkpoint was chosen; they are not the held-out ones."
    )
    if run.healing_summary:
        text += "".join(f" {said}" for said in healing_facts(run.healing_summary))
    # Models without classes have one proxy, by which they are healed, too; others are by KL.
    own = {"embedding": ("distance", "embedding"), "score": ("error", "score")}
    measure, proxy = own.get(run.config.proxy.kind, ("KL", "kl"))
    return _section("Healing", text, healing_curve(run.healing, measure, value_name(run, proxy)))


def _section(title: str, text: str, figure: go.Figure) -> Section:
    return Section(title, text, figure_html(figure, f"figure-{title.lower()}"))


def figure_html(figure: go.Figure, name: str) -> Markup:
    """A figure as an element of that id; plotly itself is in the page already."""
    html = to_html(
        figure,
        config={"displayModeBar": False, "responsive": True},
        include_plotlyjs=False,
        full_html=False,
        default_height=f"{figure.layout.height}px",
        div_id=name,
    )
    return Markup(html)
