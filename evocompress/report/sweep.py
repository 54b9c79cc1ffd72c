"""The combined report of a sweep: a table of all trials, and their fronts in one figure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from evocompress.core.circumstances import differences, read_environment
from evocompress.core.config import RunConfig
from evocompress.core.files import write_text
from evocompress.core.leftovers import clear_written
from evocompress.evaluation.proxies import meaning_of
from evocompress.pipeline.run_folder import RunFolder
from evocompress.pipeline.sweep.config import Range, SweepConfig
from evocompress.pipeline.sweep.folder import SweepFolder
from evocompress.pipeline.sweep.outcome import TrialOutcome, outcomes, write_outcomes
from evocompress.pipeline.sweep.trials import group_of, text_of, trial_of, value_text
from evocompress.report.columns import number, percent
from evocompress.report.data import FrontPoint, read_front
from evocompress.report.front import varying_costs
from evocompress.report.notes import cost_name
from evocompress.report.page import Section, figure_html, templates
from evocompress.report.style import PALETTE, SYMBOLS, blank, value_axis
from evocompress.report.trials import short_keys, short_settings, shown_value, trial_table

LEGEND_LINE = 22
"""Pixels of a line of the legend."""


@dataclass(frozen=True)
class Drawn:
    """A finished trial with the candidates that its search looked at most closely."""

    outcome: TrialOutcome
    front: tuple[FrontPoint, ...]


def write_sweep_report(path: Path) -> Path:
    """Writes ``sweep.json`` and ``sweep.html`` from the files in a sweep's folder.

    The sweep need not have ended.

    Returns:
        The page.

    Raises:
        RunError: The folder is not a sweep's, or a file in it is damaged.
    """
    folder = SweepFolder(path)
    sweep = folder.config()
    found = outcomes(folder, sweep)
    clear_written(folder.summary, folder.page)
    write_outcomes(folder, found)
    configs = [trial_of(sweep, outcome.settings).config for outcome in found]
    drawn = [
        Drawn(outcome, read_front(path / outcome.name))
        for outcome in found
        if outcome.status == "finished"
    ]
    table = trial_table(found)
    html = (
        templates()
        .get_template("sweep.html.j2")
        .render(
            name=sweep.name,
            facts=_facts(sweep, found, configs),
            headings=table.headings,
            rows=table.rows,
            value_column=table.value_column,
            failed=[(o.name, o.reason) for o in found if o.status == "failed"],
            sections=_sections(drawn, configs),
            notes=_notes(sweep, found) + _mixed(path, found),
            plotly_js=Markup(get_plotlyjs()),
        )
    )
    write_text(folder.page, html)
    return folder.page


def overlay(
    drawn: Sequence[Drawn], labels: Mapping[str, str], cost: str, value_name: str
) -> go.Figure:
    """Value against one cost as a share of the dense model's, for all finished trials.

    Labels are by the trials' names, and trials of the same label share a colour. Winners are large;
    small points are the other candidates of a trial's front, joined where this cost and the value
    span it.
    """
    known = list(dict.fromkeys(labels[each.outcome.name] for each in drawn))
    figure = blank(400 + LEGEND_LINE * len(known))
    for place, label in enumerate(known):
        colour = PALETTE[place % len(PALETTE)]
        symbol = SYMBOLS[place // len(PALETTE) % len(SYMBOLS)]
        mine = [each for each in drawn if labels[each.outcome.name] == label]
        for each in mine:
            _add_front(figure, each, cost, {"color": colour, "symbol": symbol})
        _add_winners(figure, mine, cost, {"color": colour, "symbol": symbol}, label)
    figure.update_xaxes(title_text=escape(f"{cost_name(cost)}, % of dense"))
    values = [value for each in drawn if (value := _height(each.outcome)) is not None]
    values += [point.value for each in drawn for point in _front(each)]
    figure.update_yaxes(title_text=value_name, **value_axis(values))
    legend = {"orientation": "v", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"}
    figure.update_layout(showlegend=True, hovermode="closest", legend=legend)
    return figure


def _add_front(figure: go.Figure, each: Drawn, cost: str, looks: dict[str, str]) -> None:
    """The candidates of a trial's front, if it searched one."""
    points = sorted(_front(each), key=lambda p: p.costs[cost])
    if not points:
        return
    joined = each.outcome.axes == (cost,)
    figure.add_scatter(
        x=[_share(each.outcome, point.costs, cost) for point in points],
        y=[point.value for point in points],
        mode="lines+markers" if joined else "markers",
        line={"shape": "hv", "width": 1.2, "color": looks["color"]} if joined else None,
        marker={**looks, "size": 6, "opacity": 0.55},
        showlegend=False,
        hovertext=[_hover(each.outcome, p.id, p.value) for p in points],
        hoverinfo="text",
    )


def _add_winners(
    figure: go.Figure, mine: Sequence[Drawn], cost: str, looks: dict[str, str], label: str
) -> None:
    """The winners of the trials of one label."""
    found = [each.outcome for each in mine]
    figure.add_scatter(
        x=[_share(outcome, outcome.costs or {}, cost) for outcome in found],
        y=[_height(outcome) for outcome in found],
        mode="markers",
        marker={**looks, "size": 12},
        name=escape(label),
        hovertext=[_hover(o, o.id or "", _height(o)) for o in found],
        hoverinfo="text",
    )


def _front(each: Drawn) -> list[FrontPoint]:
    return [point for point in each.front if point.non_dominated and each.outcome.is_front]


def _height(outcome: TrialOutcome) -> float | None:
    """Where a winner is drawn: with its front, else where it compares with other trials."""
    return outcome.value if outcome.is_front else shown_value(outcome)


def _share(outcome: TrialOutcome, costs: Mapping[str, float], cost: str) -> float:
    return 100 * costs[cost] / (outcome.dense_costs or {})[cost]


def _hover(outcome: TrialOutcome, candidate: str, value: float | None) -> str:
    winner = ", winner" if candidate == outcome.id else ""
    settings = escape(text_of(outcome.settings))
    return f"{settings}<br><b>{escape(candidate)}</b>{winner}<br>{number(value, 4)}"


def _labels(found: Sequence[TrialOutcome]) -> dict[str, str]:
    """The settings that trials of one colour share: all but their seed."""
    settings = short_settings(found)
    keys = [key for key in next(iter(settings.values()), {}) if key != "seed"]
    names = dict(zip(keys, short_keys(keys), strict=True))
    return {
        trial: ", ".join(f"{name} {texts[key]}" for key, name in names.items()) or "all trials"
        for trial, texts in settings.items()
    }


def _sections(drawn: Sequence[Drawn], configs: Sequence[RunConfig]) -> list[Section]:
    points = [point for each in drawn for point in (*each.front, *_winner(each))]
    axes = [axis for each in drawn for axis in each.outcome.axes]
    costs = varying_costs(points, axes)
    if not costs:
        return []
    kinds = list(dict.fromkeys(meaning_of(config.proxy.kind) for config in configs))
    labels = _labels([each.outcome for each in drawn])
    figures = [overlay(drawn, labels, cost, " or ".join(kinds)) for cost in costs]
    html = [
        figure_html(figure, f"figure-fronts{f'-{place}' if place else ''}")
        for place, figure in enumerate(figures)
    ]
    text = (
        "Every finished trial: its winner large, the other candidates of its front small. "
        "Trials of one colour differ in their seed only."
    )
    return [Section("Fronts", text, Markup("").join(html))]


def _winner(each: Drawn) -> list[FrontPoint]:
    outcome = each.outcome
    if outcome.id is None or outcome.value is None or outcome.costs is None:
        return []
    place = {"id": outcome.id, "value": outcome.value, "costs": outcome.costs}
    return [FrontPoint(**place, tokens=outcome.positions or 0, non_dominated=True)]


def _facts(
    sweep: SweepConfig, found: Sequence[TrialOutcome], configs: Sequence[RunConfig]
) -> dict[str, str]:
    counts = {
        status: sum(outcome.status == status for outcome in found)
        for status in ("finished", "failed", "stopped", "unfinished", "waiting")
    }
    ended = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    mode = {"grid": "every combination", "optuna": f"{sweep.trials} proposals of Optuna's TPE"}
    return {
        "Models": ", ".join(dict.fromkeys(config.model.source for config in configs)) or "none yet",
        "Searchers": ", ".join(dict.fromkeys(config.search.name for config in configs)),
        "Trials": ended or "none yet",
        "Mode": mode[sweep.mode],
        **{f"Varied: {key}": _axis_text(axis) for key, axis in sweep.vary.items()},
        "Tokens": f"{number(sum(outcome.requested or 0 for outcome in found), 0)} requested",
        "Time": f"{number(sum(outcome.seconds or 0.0 for outcome in found), 0)} s in all trials",
    }


def _axis_text(axis: tuple[Any, ...] | Range) -> str:
    if isinstance(axis, Range):
        text = f"{axis.low:g} to {axis.high:g}"
        return text + (f" in steps of {axis.step:g}" if axis.step else "")
    return ", ".join(map(value_text, axis))


def _mixed(path: Path, found: Sequence[TrialOutcome]) -> list[str]:
    """Says where trials were made under different circumstances."""
    files = {outcome.name: RunFolder(path / outcome.name).environment for outcome in found}
    made = {name: read_environment(file).last for name, file in files.items() if file.exists()}
    for (one, before), (other, after) in pairwise(made.items()):
        if what := differences(before, after):
            return [
                f"Trials were made under different circumstances ({other} after {one}: "
                f"{'; '.join(what)}), so their values are not quite comparable."
            ]
    return []


def _notes(sweep: SweepConfig, found: Sequence[TrialOutcome]) -> list[str]:
    notes = [
        "A value is that of the trial's winner on its search tokens, by which it was chosen, so "
        "it flatters: materialize the winners that matter, and evaluate them.",
    ]
    if len({group_of(outcome.settings) for outcome in found}) > 1:
        notes.append(
            "A value is the distance to the trial's own dense model within its own budget, so it "
            "compares trials that differ in seed, search or library only; the best of each such "
            "group is bold."
        )
    groups = Counter(group_of(o.settings) for o in found if o.status == "finished")
    several = [o for o in found if groups[group_of(o.settings)] > 1 and o.status == "finished"]
    if any(outcome.compared is not None for outcome in several):
        notes.append(
            "Values of such a group are over the micro-batches on which the winners of all its "
            "finished trials were measured; sweep.json has their number of positions, and the "
            "value of each search beside. In the figure a front has the values of its own search."
        )
    if any(outcome.compared is None for outcome in several):
        notes.append(
            "Winners that share no micro-batch, or were fine-tuned differently, are not compared: "
            "their values are each of another text, and none is bold."
        )
    if any(outcome.status == "stopped" for outcome in found):
        notes.append(
            "Of a trial that was stopped early the value is the best one so far, on fewer tokens."
        )
    costs = [outcome for outcome in found if outcome.costs]
    if costs:
        notes.append(
            f"Costs are those that the cost model predicts, {percent(1)} being the dense model's."
        )
    return notes
