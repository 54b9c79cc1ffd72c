"""Tables of further texts and of tasks, made of what an evaluation wrote."""

from fabricate import evaluation

from evocompress.report.columns import UNTOLD
from evocompress.report.data import Evaluation
from evocompress.report.tables import short_names, table_notes, tables

SCORE = {"task": "arc_easy", "value": 0.5, "error": 0.0123}
APART = {"difference": -0.1, "difference_error": 0.02, "lost": 1200, "won": 7}


def asked(**of_models):
    """An evaluation whose models have these tasks and a further text each."""
    data = evaluation()
    for row in data["rows"]:
        row["tasks"] = of_models.get(row["name"], [])
        row["texts"] = [
            {"source": f"{folder}/a.txt", "kl": 0.25, "kl_p99": 3.5, "perplexity": 12.345}
            for folder in ("one", "two")
        ]
    data["texts"] = [
        {"source": f"{folder}/a.txt", "sequences": 4, "length": 32, "digest": "d" * 16}
        for folder in ("one", "two")
    ]
    data["tasks"] = [{"name": "arc_easy", "questions": 2376}]
    return Evaluation.model_validate(data)


def column(found, title):
    return next(c for table in tables(found) for c in table.columns if c.title == title)


def test_a_score_has_its_error_the_difference_and_the_flips_below():
    dense = SCORE | {"measure": "acc"}
    close = APART | {"difference_error": 0.06}
    found = asked(dense=[dense], searched=[dense | APART], healed=[dense | close])
    cells = column(found, "arc_easy").cells
    assert [cell.text for cell in cells] == ["50.0", "–", "50.0", "50.0"]
    assert cells[0].notes == ("± 1.2",)
    assert cells[2].notes == ("± 1.2", "Δ -10.0 ± 2.0", "1,200 lost, 7 won")
    assert cells[3].notes[1:3] == ("Δ -10.0 ± 6.0", UNTOLD)


def test_measures_are_told_apart_and_only_shares_are_in_percent():
    measures = [SCORE | {"measure": "acc_norm"}, SCORE | {"measure": "brier", "value": 1.5}]
    found = asked(dense=measures)
    assert column(found, "arc_easy, by length").unit == "%"
    brier = column(found, "arc_easy, brier")
    assert (brier.unit, brier.cells[0].text) == ("", "1.5")


def test_texts_of_one_name_are_told_apart_by_their_folders():
    titles = [column.title for column in tables(asked())[1].columns]
    assert titles[:3] == [
        "one/a.txt: KL",
        "one/a.txt: KL, 99th percentile",
        "one/a.txt: perplexity",
    ]
    assert short_names(["x/b.txt", "datasets:wiki"]) == {
        "x/b.txt": "b.txt",
        "datasets:wiki": "datasets:wiki",
    }


def test_the_notes_say_how_much_was_asked():
    texts, tasks = table_notes(asked())
    assert "one/a.txt, 4 sequences of 32 tokens (digest dddd" in texts
    assert "arc_easy 2,376" in tasks and UNTOLD in tasks


def test_an_evaluation_without_them_has_the_comparison_alone():
    found = Evaluation.model_validate(evaluation())
    assert [table.title for table in tables(found)] == ["Comparison"]
    assert list(table_notes(found)) == []
