"""The report of rounds of searching and healing: a table of all models, and their front."""

from __future__ import annotations

from html import escape
from pathlib import Path

import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from evocompress.core.files import write_text
from evocompress.core.leftovers import clear_written
from evocompress.pipeline.rounds import RoundsFolder
from evocompress.report.columns import number, percent
from evocompress.report.data import Evaluation, Row, read_evaluation
from evocompress.report.notes import budget_text, heldout_text
from evocompress.report.page import Section, figure_html, templates
from evocompress.report.style import BLUE, ORANGE, blank, value_axis
from evocompress.report.tables import table_notes, tables

HEALED = ", healed"
"""How the names of healed models end."""


def write_rounds_report(path: Path) -> Path:
    """Writes ``report.html`` and ``summary.md`` from the files of rounds that were made.

    Returns:
        The page.

    Raises:
        RunError: The folder is not of rounds, none has ended, or a file is damaged.
    """
    config, evaluation = RoundsFolder(path).config(), read_evaluation(path)
    content = {
        "name": config.name,
        "facts": {
            "Model": config.model.source,
            "Rounds": str(config.rounds),
            "Budget": budget_text(config.space.budget),
            "Searcher": config.search.name,
            "Seed": str(config.seed),
        },
        "headlines": [],
        "tables": tables(evaluation),
        "allocation": "",
        "notes": [
            heldout_text(evaluation.heldout),
            "All are compared with the model of the beginning. Each round has a report of its own, "
            "in which dense is the healed model of the round before.",
            *table_notes(evaluation),
        ],
    }
    found, summary, page = templates(), path / "summary.md", path / "report.html"
    html = found.get_template("page.html.j2").render(
        content, sections=_sections(evaluation), plotly_js=Markup(get_plotlyjs())
    )
    clear_written(summary, page)
    write_text(summary, found.get_template("summary.md.j2").render(content))
    write_text(page, html)
    return page


def _sections(evaluation: Evaluation) -> list[Section]:
    """The front of all rounds, where the models have a divergence."""
    figure = rounds_front(evaluation)
    if figure is None:
        return []
    text = (
        "Divergence from the model of the beginning against size, on held-out text: each round "
        "before its healing and after it."
    )
    return [Section("Front", text, figure_html(figure, "figure-front"))]


def rounds_front(evaluation: Evaluation) -> go.Figure | None:
    """Divergence against non-zero parameters, after each round; ``None`` where there is none."""
    dense = evaluation.row("dense")
    rows = [row for row in evaluation.rows if row.name != "dense" and row.kl is not None]
    if dense is None or not dense.nonzeros or not rows:
        return None
    figure = blank(380)
    healed = [row for row in rows if row.name.endswith(HEALED)]
    for name, group, colour in (
        ("before healing", [row for row in rows if row not in healed], ORANGE),
        ("healed", healed, BLUE),
    ):
        figure.add_scatter(
            x=[100 * (row.nonzeros or 0) / dense.nonzeros for row in group],
            y=[row.kl for row in group],
            name=name,
            mode="lines+markers",
            line={"color": colour, "width": 1.2},
            marker={"color": colour, "size": 9},
            hovertext=[_hover(row, dense.nonzeros) for row in group],
            hoverinfo="text",
        )
    figure.update_xaxes(title_text="non-zero parameters, % of dense")
    values = [row.kl for row in rows if row.kl is not None]
    figure.update_yaxes(title_text="held-out KL, nats/token", **value_axis(values))
    figure.update_layout(showlegend=True, hovermode="closest")
    return figure


def _hover(row: Row, dense: float) -> str:
    share = percent((row.nonzeros or 0) / dense)
    return f"<b>{escape(row.name)}</b><br>{number(row.kl, 4)} at {share} of the parameters"
