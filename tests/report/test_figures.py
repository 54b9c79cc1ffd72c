import pytest

from evocompress.pipeline.journal import Step
from evocompress.report.data import FrontPoint, HealStep
from evocompress.report.figures import healing_curve, search_curve
from evocompress.report.front import front_scatter, varying_costs
from evocompress.report.history import ComparedValue, History
from evocompress.report.style import whole_ticks


def point(name: str, value: float, best: bool, **costs: float) -> FrontPoint:
    return FrontPoint(id=name, value=value, costs=costs, tokens=100, non_dominated=best)


POINTS = [
    point("a", 0.4, True, params=7.0, flops=50.0),
    point("b", 0.5, True, params=7.0, flops=40.0),
    point("c", 0.6, False, params=7.0, flops=45.0),
]


def test_search_curve_leaves_out_steps_before_the_first_comparison() -> None:
    steps = (Step(0, 10, 10, None, None), Step(1, 20, 20, "a", 0.5), Step(2, 30, 25, "b", 0.4))
    figure = search_curve(History(steps), "KL")
    assert figure is not None
    assert (figure.data[0].x, figure.data[0].y) == ((20, 30), (0.5, 0.4))
    assert search_curve(History(steps[:1]), "KL") is None


@pytest.mark.parametrize(("start", "kind", "label_at"), [(0.5, None, 0.6), (60.0, "log", -0.2218)])
def test_search_curve_scale_and_uniform_line(
    start: float, kind: str | None, label_at: float
) -> None:
    steps = (Step(0, 10, 10, "a", start), Step(1, 20, 20, "b", 0.4))
    figure = search_curve(History(steps, uniform=ComparedValue(0.6, 8)), "KL")
    assert figure is not None
    assert figure.layout.yaxis.type == kind
    assert figure.layout.shapes[0].y0 == 0.6
    assert figure.layout.annotations[0].y == pytest.approx(label_at, abs=1e-4)
    if kind == "log":
        assert figure.layout.yaxis.ticktext[:4] == ("0.1", "0.2", "0.5", "1")


def test_front_separates_best_from_dominated_and_rings_the_winner() -> None:
    figure = front_scatter(POINTS, "flops", 80.0, "a", "KL")
    named = {trace.name: trace for trace in figure.data}
    assert named["front"].y == (0.5, 0.4)
    assert named["front"].x == pytest.approx((50.0, 62.5)), "percent of dense, by cost"
    assert named["dominated"].y == (0.6,)
    assert named["winner"].y == (0.4,)
    assert named["front"].hovertext[1].startswith("<b>a</b>")


def test_a_front_is_over_every_weighed_cost_that_varies() -> None:
    assert varying_costs(POINTS, ["params"]) == [], "what was not weighed is no axis"
    assert varying_costs(POINTS, ["flops", "params", "flops"]) == ["flops"]
    both = [point("a", 0.4, True, params=7.0, flops=50.0), point("b", 0.5, True, params=6, flops=9)]
    assert varying_costs(both, ["params", "flops"]) == ["params", "flops"]
    assert varying_costs(POINTS[:1], ["flops"]) == []
    assert varying_costs([], ["flops"]) == []


def test_candidates_of_one_budget_are_no_front() -> None:
    budget = [
        point("a", 0.4, True, params=1000.0),
        point("b", 0.5, True, params=998.0),
        point("c", 0.6, False, params=700.0),
    ]
    assert varying_costs(budget, ["params"]) == []


@pytest.mark.parametrize("count", [1, 2, 3, 6, 10, 11, 30, 48, 126, 1001])
def test_what_is_counted_has_whole_ticks(count: int) -> None:
    step = whole_ticks(count)["dtick"]
    assert isinstance(step, int) and 1 <= count / step <= 10


def test_healing_curve_has_validation_only_where_measured() -> None:
    steps = [HealStep(step=0, train_loss=0.3, validation_kl=0.35), HealStep(step=1, train_loss=0.2)]
    figure = healing_curve(steps, "distance", "distance to the dense model's")
    loss, validation = figure.data
    assert validation.name == "validation distance"
    assert figure.layout.yaxis.title.text == "distance to the dense model's"
    assert loss.y == (0.3, 0.2)
    assert (validation.x, validation.y) == ((0,), (0.35,))
