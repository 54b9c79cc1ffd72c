"""Further texts and tasks of an evaluation, from the command to the report."""

import json

import pytest
from transformers import AutoTokenizer

from evocompress import api
from evocompress.core.errors import EvoCompressError, ModelError
from evocompress.core.files import checksum_of, read_json
from evocompress.evaluation.tasks import Score
from evocompress.export.record import CANDIDATE_FILE
from evocompress.report import table
from evocompress.report.data import read_evaluation

QUESTIONS = [
    {"question": f"word{n} is", "choices": [f"word{n}", "another", "none"][: 2 + n % 2], "label": 0}
    for n in range(6)
]


@pytest.fixture
def tasks(home):
    """A folder with one task."""
    (home / "tasks").mkdir()
    path = home / "tasks" / "words.jsonl"
    path.write_text("\n".join(map(json.dumps, QUESTIONS)))
    return path


@pytest.fixture
def asked(home, tasks):
    """The changes of an evaluation that ask both."""
    (home / "more.txt").write_text(" ".join(f"item{n**3 % 101}" for n in range(900)))
    return [
        f"evaluate.texts=[{home / 'more.txt'}]",
        "evaluate.tasks=[words]",
        f"evaluate.tasks_folder={tasks.parent}",
    ]


def test_texts_and_tasks_are_written_and_shown(home, asked, tasks):
    run = home / "runs" / "trial"
    found = read_json(api.evaluate(run, [*asked, "evaluate.limit=5"]))
    assert found["tasks"] == [
        {"name": "words", "file": str(tasks), "digest": checksum_of(tasks), "questions": 5}
    ]
    text = found["texts"][0]
    assert (text["source"], text["sequences"], text["length"]) == (str(home / "more.txt"), 4, 32)
    assert text["digest"] != found["heldout"]["digest"]
    assert "lm_eval" in found["environment"]["versions"]
    for row in found["rows"]:
        assert [score["measure"] for score in row["tasks"]] == ["acc", "acc_norm"]
        for score in row["tasks"]:
            assert score.keys() == {"task", "measure", *Score.__dataclass_fields__}
            assert (score["difference"] is None) == (row["name"] == "dense")
        assert (
            row["texts"][0]["perplexity"] > 1 and row["texts"][0]["perplexity"] != row["perplexity"]
        )
        assert (row["kl"] == 0) == (row["name"] == "dense")
        assert row["kl_p99"] >= row["kl"]
    api.report(run)
    page, summary = ((run / name).read_text() for name in ("report.html", "summary.md"))
    for title in ("<h2>Further texts</h2>", "<h2>Tasks</h2>", "words, by length"):
        assert title in page
    assert "more.txt: KL, 99th percentile" in summary and "words 5" in summary
    assert {"words", "words, by length"} <= {str(cell) for cell in table(run).columns[0].cells} | {
        str(cell).split("  ")[0] for cell in table(run).columns[0].cells
    }


def test_a_text_is_measured_as_the_held_out_one_is(home, asked):
    run = home / "runs" / "trial"
    text = asked[0].split("=", 1)[1].strip("[]")
    rows = read_json(api.evaluate(run, asked[:1]))["rows"]
    again = read_json(api.evaluate(run, [f"calibration.heldout_source={text}"]))["rows"]
    for row, other in zip(rows, again, strict=True):
        for measure in ("kl", "kl_sd", "kl_p99", "kl_top256", "perplexity"):
            assert row["texts"][0][measure] == other[measure]
    evaluation = read_evaluation(run)
    assert evaluation.texts == () and evaluation.tasks == ()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("evaluate.texts=[nowhere.txt]", "evaluate.texts: nowhere.txt does not exist"),
        ("evaluate.tasks_folder=nowhere", "nowhere is no folder"),
        ("evaluate.tasks=[words,words]", "name each only once"),
        ("evaluate.tasks=[../words]", "key 'evaluate.tasks.0'"),
        ("evaluate.limit=0", "key 'evaluate.limit'"),
    ],
)
def test_what_cannot_be_asked_is_told_before_the_model_is_loaded(
    home, asked, change, told, monkeypatch
):
    monkeypatch.setattr("evocompress.pipeline.context.load_as", pytest.fail)
    with pytest.raises(EvoCompressError, match=told):
        api.evaluate(home / "runs" / "trial", [*asked, change])
    assert not (home / "runs" / "trial" / "evaluation.json").exists()


def test_a_task_file_is_checked_before_the_model_is_loaded(home, asked, tasks, monkeypatch):
    tasks.write_text(tasks.read_text() + '\n{"question": 1}')
    monkeypatch.setattr("evocompress.pipeline.context.load_as", pytest.fail)
    with pytest.raises(EvoCompressError, match=r"words\.jsonl, line 7: key 'question'"):
        api.evaluate(home / "runs" / "trial", asked)


@pytest.mark.parametrize("what", ["tokenizer", "vocabulary"])
def test_a_checkpoint_of_another_tokenizer_or_vocabulary_is_refused(home, what):
    run = home / "runs" / "trial"
    checkpoint = run / "checkpoint"
    if what == "tokenizer":
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        tokenizer.add_tokens(["word1"])
        tokenizer.save_pretrained(checkpoint)
    else:
        config = json.loads((checkpoint / "config.json").read_text())
        (checkpoint / "config.json").write_text(json.dumps(config | {"vocab_size": 300}))
        weights(checkpoint)
    record = read_json(checkpoint / CANDIDATE_FILE)
    (checkpoint / CANDIDATE_FILE).write_text(json.dumps(record | {"files": {}}))
    with pytest.raises(ModelError, match=what):
        api.evaluate(run)


def weights(checkpoint):
    """Gives the embedding of a checkpoint as many rows as its config says that there are."""
    from safetensors.torch import load_file, save_file

    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if "embed" in name or "lm_head" in name:
            tensors[name] = tensor.repeat(2, 1)[:300].contiguous()
    save_file(tensors, path, {"format": "pt"})
