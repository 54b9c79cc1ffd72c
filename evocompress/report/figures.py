"""The curves of the page: what the search and the healing did over time.

Text that plotly shows is read as HTML by it, so every name is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import plotly.graph_objects as go

from evocompress.report.columns import number
from evocompress.report.data import HealStep
from evocompress.report.history import History
from evocompress.report.style import BLUE, GREY, blank, is_wide, value_axis, whole_ticks


def search_curve(history: History, value_name: str) -> go.Figure | None:
    """The incumbent's value, called `value_name`, over requested tokens; ``None`` without any."""
    steps = [step for step in history.steps if step.value is not None]
    if not steps:
        return None
    values = [float(step.value or 0.0) for step in steps]
    figure = blank(340)
    hover = [
        f"<b>{escape(step.incumbent or '')}</b><br>{number(value, 4)} at step {step.step}, "
        f"{number(step.requested, 0)} tokens"
        for step, value in zip(steps, values, strict=True)
    ]
    tokens = [step.requested for step in steps]
    line = {"color": BLUE, "width": 2, "shape": "hv"}
    figure.add_scatter(
        x=tokens, y=values, name="incumbent", line=line, hovertext=hover, hoverinfo="text"
    )
    if history.uniform is not None:
        label = f"uniform {number(history.uniform.value, 4)}"
        figure.add_hline(history.uniform.value, line={"color": GREY, "dash": "dash", "width": 1.5})
        _label(figure, label, history.uniform.value, is_wide([*values, history.uniform.value]))
        values.append(history.uniform.value)
    figure.update_xaxes(title_text="requested tokens", rangemode="tozero")
    figure.update_yaxes(title_text=value_name, **value_axis(values))
    return figure


def healing_curve(steps: Sequence[HealStep], measure: str, value_name: str) -> go.Figure:
    """Training loss and validation, a `measure` in words, over the optimizer steps."""
    figure = blank(320)
    trained = [(step.step, step.train_loss) for step in steps if step.train_loss is not None]
    measured = [(s.step, s.validation_kl) for s in steps if s.validation_kl is not None]
    figure.add_scatter(
        x=[step for step, _ in trained],
        y=[loss for _, loss in trained],
        name="training loss",
        line={"color": GREY, "width": 1.2},
    )
    figure.add_scatter(
        x=[step for step, _ in measured],
        y=[divergence for _, divergence in measured],
        name=f"validation {measure}",
        mode="lines+markers",
        line={"color": BLUE, "width": 2},
        marker={"size": 7},
    )
    values = value_axis([value for _, value in trained + measured])
    last = max((step.step for step in steps), default=0)
    figure.update_xaxes(title_text="optimizer step", **whole_ticks(last))
    figure.update_yaxes(title_text=value_name, **values)
    figure.update_layout(showlegend=True)
    return figure


def _label(figure: go.Figure, text: str, value: float, logarithmic: bool) -> None:
    """Names a horizontal line at its right end; plotly wants annotations in the axis's scale."""
    figure.add_annotation(
        x=1, xref="paper", xanchor="right", yanchor="bottom", showarrow=False,
        y=math.log10(value) if logarithmic else value, text=text,
    )  # fmt: skip
