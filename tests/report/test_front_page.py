import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from fabricate import write_json
from fabricate_front import front_run

from evocompress.report import write_report
from evocompress.report.data import read_run
from evocompress.report.front import DETAILED, choice, detailed, embedded, front_scatter


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return front_run(tmp_path_factory.mktemp("front") / "run")


@pytest.fixture(scope="module")
def html(folder: Path) -> str:
    return write_report(folder).read_text()


def series(html: str) -> dict[str, dict[str, Any]]:
    """The traces of the front by name."""
    start = re.search(r'Plotly\.newPlot\(\s*"figure-front",\s*', html)
    assert start is not None
    traces = json.JSONDecoder().raw_decode(html[start.end() :])[0]
    return {trace["name"]: trace for trace in traces}


def layer_maps(html: str) -> dict[str, dict[str, Any]]:
    found = re.search(r'<script type="application/json" id="layer-maps">(.*?)</script>', html)
    assert found is not None
    maps: dict[str, dict[str, Any]] = json.loads(found[1])
    return maps


def clickable(html: str) -> Iterator[str]:
    for trace in series(html).values():
        yield from trace["customdata"]


def test_references_are_series_of_their_own(html: str) -> None:
    drawn = series(html)
    assert {"front", "uniform width", "FLAP", "winner", "knee"} <= drawn.keys()
    assert len({drawn[name]["marker"]["symbol"] for name in ("uniform width", "FLAP")}) == 2
    assert len(drawn["FLAP"]["x"]) == 5


def test_the_front_is_a_line_over_percent_of_dense(html: str) -> None:
    front = series(html)["front"]
    assert front["line"]["shape"] == "hv", "between two points nothing better was reached"
    assert front["x"] == sorted(front["x"]) and 39 < front["x"][0] < front["x"][-1] < 100
    assert front["y"] == sorted(front["y"], reverse=True)


def test_every_point_has_its_layers_in_the_page(html: str, folder: Path) -> None:
    maps = layer_maps(html)
    assert set(clickable(html)) == maps.keys()
    assert maps.keys() == {row["id"] for row in json.loads((folder / "front.json").read_text())}
    assert set(re.findall(r'<option value="(\w+)"', html)) == maps.keys()
    assert 'on("plotly_click"' in html and 'addEventListener("change"' in html


def test_a_map_shows_the_layers_of_its_own_candidate(html: str, folder: Path) -> None:
    candidates = read_run(folder).candidates
    for name, drawn in layer_maps(html).items():
        [kept, *_] = drawn["data"]
        assert kept["y"] == ["attention", "mlp"]
        for unit, level in candidates[name].levels:
            block, kind = int(unit.split(".")[2]), unit.split(".")[3]
            hover = kept["customdata"][kept["y"].index(kind)][block]
            assert hover.startswith(f"<b>{unit}</b>")
            shown = kept["z"][kept["y"].index(kind)][block]
            if level.drop:
                assert shown is None and hover.endswith("dropped")
            elif level.channels:
                assert shown == pytest.approx(100 * level.channels / 1536)
                assert f"{level.channels} of 1536 channels" in hover
            else:
                assert f"{level.kv_groups} of 3 KV heads × {level.group_heads} of 3" in hover


def test_the_first_map_is_the_winners(html: str, folder: Path) -> None:
    winner = json.loads((folder / "winner.json").read_text())["id"]
    [chosen] = re.findall(r'<option value="(\w+)" selected>', html)
    assert chosen == winner
    assert series(html)["winner"]["customdata"] == [winner]


def test_the_caption_has_hypervolume_and_reference(html: str, folder: Path) -> None:
    front = json.loads((folder / "winner.json").read_text())["front"]
    assert f"Its hypervolume is {front['hypervolume']:.4f}" in html
    assert f"up to a value of {front['reference']['value']:.4f}" in html


def test_measured_latency_stands_beside_the_promise(folder: Path, html: str) -> None:
    winner = json.loads((folder / "winner.json").read_text())
    promise = winner["costs"]["latency"] / winner["dense_costs"]["latency"]
    text = (folder / "summary.md").read_text()
    assert (
        f"predicted {100 * promise:.1f}%; predicted {1000 * winner['costs']['latency']:.1f}" in text
    )
    assert "Latency of a prefill" in html, "the first headline is the cost of the front"
    assert "Predicted latencies come from a table of 512 tokens at batch 1" in text
    assert "width of attention and mlp (obs\\_structured)" in text


def test_names_cannot_break_out_of_the_data(tmp_path: Path) -> None:
    attack = "</script><script>alert(1)</script>"
    folder = front_run(tmp_path / "run")
    front = json.loads((folder / "front.json").read_text())
    front[-1]["label"] = attack
    write_json(folder / "front.json", front)
    content = json.loads((folder / "units.json").read_text())
    for unit in content["units"]:
        unit["role"] = unit["role"].replace("mlp", attack)
    write_json(folder / "units.json", content)
    html = write_report(folder).read_text()
    assert "<script>alert(1)" not in html
    assert len(layer_maps(html)) == len(front)


def test_candidates_that_are_not_in_the_journal_have_no_layers(tmp_path: Path) -> None:
    folder = front_run(tmp_path / "run")
    (folder / "journal.jsonl").write_text('{"type":"run"}\n')
    html = write_report(folder).read_text()
    assert 'id="layer-maps"' not in html and 'id="figure-front"' in html


def test_only_so_many_dominated_candidates_are_detailed(folder: Path) -> None:
    run = read_run(folder)
    many = [point.model_copy(update={"non_dominated": False}) for point in run.front * 4]
    assert len(detailed([*many, *run.front], None)) == DETAILED
    assert all(p.non_dominated for p in detailed([*many, *run.front], None)[:20])


def test_a_choice_names_cost_value_and_label(folder: Path) -> None:
    flap = next(point for point in read_run(folder).front if point.label == "FLAP")
    line = choice(flap, ["latency"], {"latency": 0.8})
    assert line == f"latency of a prefill 40%, value {flap.value:.4f}, {flap.id} (FLAP)"


def test_without_a_dense_cost_latencies_are_in_milliseconds(folder: Path) -> None:
    points = read_run(folder).front
    line = choice(points[0], ["latency"], {})
    assert line.startswith(f"latency of a prefill {1000 * points[0].costs['latency']:.1f} ms, ")
    figure = front_scatter(points, "latency", None, None, "value")
    assert figure.layout.xaxis.title.text == "latency of a prefill, ms"
    drawn = next(trace for trace in figure.data if trace.name == "FLAP")
    expected = [1000 * p.costs["latency"] for p in points if p.label == "FLAP"]
    assert drawn.x == pytest.approx(expected)


def test_embedded_data_has_no_tags() -> None:
    text = embedded({"a": go.Figure(layout={"title": {"text": "</script>"}})})
    assert "<" not in text
    assert json.loads(text)["a"]["layout"]["title"]["text"] == "</script>"


def test_a_front_over_two_costs_shows_both(tmp_path: Path) -> None:
    folder = front_run(tmp_path / "run")
    winner = json.loads((folder / "winner.json").read_text())
    winner["front"]["axes"] = ["latency", "params"]
    write_json(folder / "winner.json", winner)
    html = write_report(folder).read_text()
    for figure, title in (("front", "latency of a prefill"), ("front-1", "parameters")):
        start = re.search(rf'Plotly\.newPlot\(\s*"figure-{figure}",\s*', html)
        assert start is not None
        decoder = json.JSONDecoder()
        traces, end = decoder.raw_decode(html, start.end())
        layout, _ = decoder.raw_decode(html, html.index("{", end))
        assert layout["xaxis"]["title"]["text"] == f"{title}, % of dense"
        named = {trace["name"]: trace for trace in traces}
        assert {"front", "winner", "knee"} <= named.keys() and "line" not in named["front"]
    assert "by latency of a prefill and by parameters" in html
    assert re.search(r"<option[^>]*>latency of a prefill 97%, parameters 97%, value", html)


def test_candidates_of_one_budget_are_no_section(tmp_path: Path) -> None:
    folder = front_run(tmp_path / "run")
    rows = json.loads((folder / "front.json").read_text())
    for place, row in enumerate(rows):
        row["costs"]["latency"] = 0.5 + 0.0001 * (place % 7)
    write_json(folder / "front.json", rows)
    assert "<h2>Front</h2>" not in write_report(folder).read_text()
