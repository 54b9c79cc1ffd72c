"""The combined report of a sweep, from folders with made-up numbers."""

import json
from io import StringIO

import pytest
from rich.console import Console
from test_page import Page, figure_data, without_plotly

from evocompress.core.errors import RunError
from evocompress.pipeline.sweep import SweepConfig, SweepFolder, begin_sweep
from evocompress.pipeline.sweep.outcome import read_outcomes
from evocompress.pipeline.sweep.record import TrialRecord
from evocompress.pipeline.sweep.trials import planned
from evocompress.report import sweep_table, write_sweep_report

ATTACK = "<img src=x onerror=alert(1)>"
RUN = {"model": {"source": "m"}, "space": {"drop": {}}, "search": {"name": "nsga2"}}
DENSE = {"params": 100.0, "latency": 2.0}


def point(name, value, params, dominated=False):
    costs = {"params": params, "latency": 1.0}
    return {"id": name, "value": value, "costs": costs, "tokens": 9, "non_dominated": not dominated}


@pytest.fixture
def folder(tmp_path):
    """Models m and an attack, seeds 0 to 2: five finished fronts, and one failure."""
    vary = {"model.source": ["models/m", ATTACK], "seed": [0, 1, 2]}
    sweep = SweepConfig(name="many", runs=tmp_path, run=RUN, vary=vary)
    found = SweepFolder(sweep.folder)
    begin_sweep(found, sweep)
    for index, (name, settings) in enumerate(planned(sweep).items()):
        record = TrialRecord(settings, f"2026-01-0{index + 1}", seconds=60.0 + index)
        if index == 5:
            found.records.keep(
                name, TrialRecord(settings, "2026-01-09", failed=f"no {ATTACK} to load")
            )
            continue
        found.records.keep(name, record)
        value = 0.5 - 0.1 * index
        run = found.path / name
        run.mkdir()
        summary = {"axes": ["params"], "reference": {}, "hypervolume": 1.0, "knee": "b"}
        winner = {"id": "b", "value": value, "levels": {}, "costs": point("b", 0, 60.0)["costs"]}
        winner |= {"dense_costs": DENSE, "budget": {}, "front": summary}
        winner |= {"measured": [[0, 10 * value, 10], [1 + index, 50.0, 10]]}
        rows = [point("a", 2 * value, 40.0), point("b", value, 60.0), point("c", 3.0, 70.0, True)]
        (run / "winner.json").write_text(json.dumps(winner))
        (run / "front.json").write_text(json.dumps(rows))
        step = {"type": "step", "step": 1, "requested": 1000 + index, "computed": 900}
        step |= {"incumbent": "b", "value": value, "phase": ""}
        (run / "journal.jsonl").write_text(json.dumps(step, separators=(",", ":")) + "\n")
    return found


def test_every_trial_is_a_row_of_the_page_and_of_the_terminal(folder):
    page = Page(write_sweep_report(folder.path).read_text())
    header, *rows = page.rows
    titles = [" ".join(cell.split()) for cell in header]
    assert titles == [
        *("source", "seed", "Value", "Parameters of dense"),
        *("Tokens requested", "Time s", "Ended"),
    ]
    cells = [[" ".join(cell.split()) for cell in row] for row in rows]
    assert len(cells) == 6
    assert cells[1][0].startswith("m source-m-seed-1-")
    assert cells[1][1:] == ["1", "0.4000", "60%", "1,001", "61.0", "finished"]
    assert cells[5][2:6] == ["–", "–", "–", "0.0"] and "failed: no <img" in cells[5][6]
    console = Console(width=120, file=StringIO())
    console.print(sweep_table(folder.path))
    text = console.file.getvalue()
    assert text.count("finished") == 5 and text.count("* 0.") == 2
    assert "* 0.3000" in text and "* 0.1000" in text, "the best of each model"


def test_all_fronts_are_in_one_figure_a_colour_for_each_model(folder):
    traces = figure_data(write_sweep_report(folder.path).read_text(), "fronts")
    fronts = [trace for trace in traces if "lines" in trace["mode"]]
    winners = [trace for trace in traces if trace["mode"] == "markers"]
    assert [trace["x"] for trace in fronts] == [[40.0, 60.0]] * 5, "shares, without dominated ones"
    assert [trace["y"] for trace in fronts][0] == [1.0, 0.5]
    assert [trace["name"][:11] for trace in winners] == ["source m", "source &lt;"]
    assert [len(trace["x"]) for trace in winners] == [3, 2]
    colours = [trace["marker"]["color"] for trace in fronts]
    assert colours[0] == colours[2] == winners[0]["marker"]["color"] != colours[3]


def test_the_page_loads_nothing_and_runs_nothing_of_what_it_shows(folder):
    html = write_sweep_report(folder.path).read_text()
    page = Page(html)
    assert page.loads == [] and "img" not in page.tags
    assert "content=\"default-src 'none';" in html
    assert "<img" not in without_plotly(html)


def test_a_sweep_that_has_just_begun_has_a_page(tmp_path):
    sweep = SweepConfig(name="new", runs=tmp_path, run=RUN, vary={"seed": [0, 1]})
    begin_sweep(SweepFolder(sweep.folder), sweep)
    page = Page(write_sweep_report(sweep.folder).read_text())
    assert page.headings == ["Trials", "Reading the numbers"] and len(page.rows) == 3


def test_another_folder_is_one_clear_line(tmp_path):
    with pytest.raises(RunError, match="not a sweep's folder"):
        write_sweep_report(tmp_path)


def rewrite(folder, fields):
    """Changes the winners of the finished trials, in the order of the table."""
    for place, trial in enumerate(read_outcomes(folder)[:5]):
        path = folder.path / trial.name / "winner.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields(place)))


def compared(folder):
    return [(trial.compared, trial.positions) for trial in read_outcomes(folder)]


def printed(folder):
    console = Console(width=120, file=StringIO())
    console.print(sweep_table(folder.path))
    return console.file.getvalue()


def test_trials_are_compared_on_the_micro_batches_that_their_winners_share(folder):
    write_sweep_report(folder.path)
    # By all that they were measured on, the third would be the best: it alone saw an easy text.
    easy = {2: [7, 1.0, 990]}
    rewrite(folder, lambda place: {"measured": [[0, 4.0 + place, 10], easy.get(place, [3, 9, 9])]})
    write_sweep_report(folder.path)
    common = [(pytest.approx(0.4 + 0.1 * place), 10) for place in range(3)]
    assert compared(folder)[:3] == common
    assert compared(folder)[3] == (pytest.approx((7 + 9) / 19), 19), "of another model"
    assert "* 0.4000" in printed(folder)


def test_a_fine_tuned_winner_is_not_compared_with_one_that_is_not(folder):
    write_sweep_report(folder.path)
    rewrite(folder, lambda place: {"treatment": "tuned" if place == 1 else "none"})
    write_sweep_report(folder.path)
    assert compared(folder)[:3] == [(None, None)] * 3
    assert printed(folder).count("* 0.") == 1, "only the best of the other model"


def test_trials_that_share_no_micro_batch_have_no_best(folder):
    write_sweep_report(folder.path)
    rewrite(folder, lambda place: {"measured": [[place, 1.0, 10]]})
    html = write_sweep_report(folder.path).read_text()
    assert "* 0." not in printed(folder)
    assert "share no micro-batch" in html
    assert set(compared(folder)) == {(None, None)}


def test_trials_of_different_circumstances_are_said(folder):
    runs = sorted(path for path in folder.path.iterdir() if (path / "winner.json").exists())
    for run, torch in zip(runs, ("2.1", "2.1", "2.2"), strict=False):
        (run / "environment.json").write_text(json.dumps({"versions": {"torch": torch}}))
    assert (
        "Trials were made under different circumstances"
        in write_sweep_report(folder.path).read_text()
    )
    (runs[2] / "environment.json").unlink()
    assert "different circumstances" not in write_sweep_report(folder.path).read_text()


def test_what_a_killed_report_left_is_cleared(folder):
    dead = [folder.path / f".{name}.7.0123abcd.tmp" for name in ("sweep.html", "sweep.json")]
    for path in dead:
        path.touch()
    write_sweep_report(folder.path)
    assert not any(path.exists() for path in dead)
