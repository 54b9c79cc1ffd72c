"""Checkpoints and evaluations of another candidate than the winner are named as what they are."""

import shutil

from evocompress import api
from evocompress.core.files import read_json, write_json
from evocompress.core.progress import Silent
from evocompress.report.data import read_run


class Told(Silent):
    """Keeps what is said."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def rows_of(run):
    return {row["name"]: row for row in read_json(run / "evaluation.json")["rows"]}


def test_another_candidate_than_the_winner_is_named_as_what_it_is(home):
    run = home / "runs" / "trial"
    shutil.rmtree(run / "checkpoint")
    api.materialize(run, candidate="uniform")
    found, winner = (
        read_json(run / name)["id"] for name in ("checkpoint/candidate.json", "winner.json")
    )
    assert found != winner
    told = Told()
    api.heal(run, reporter=told)
    assert f"is of candidate {found}, not of the winner {winner}" in " ".join(told.lines)
    api.evaluate(run)
    rows = rows_of(run)
    assert list(rows) == ["dense", "uniform", f"candidate {found}", f"candidate {found}, healed"]
    assert rows[f"candidate {found}"]["kl"] == rows["uniform"]["kl"]
    api.report(run)
    summary = (run / "summary.md").read_text()
    for what in ("comparison", "healing"):
        assert f"The {what} is of candidate {found}, not of the winner {winner}." in summary


def test_an_evaluation_of_a_former_winner_is_not_reported_as_the_present_ones(home):
    run = home / "runs" / "trial"
    api.heal(run)
    api.evaluate(run)
    former = read_json(run / "winner.json")
    other = read_json(
        api.materialize(run, candidate="uniform", out=home / "other") / "candidate.json"
    )
    write_json(run / "winner.json", former | {"id": other["id"], "levels": other["levels"]})
    api.report(run)
    names = [row.name for row in read_run(run).evaluation.rows]
    assert names == [
        "dense",
        "uniform",
        *(f"candidate {former['id']}{what}" for what in ("", ", healed")),
    ]
    note = f"is of candidate {former['id']}, not of the winner {other['id']}"
    assert (run / "summary.md").read_text().count(note) == 2
    api.evaluate(run)
    assert "searched" not in rows_of(run)
