"""Answers are those of lm-evaluation-harness, and of a scoring in float64 that shares no code."""

import json
import sys

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset

from evocompress.core.errors import DataError
from evocompress.evaluation.tasks import ask, find_tasks, harness, score
from evocompress.testing.tiny import tiny_loaded, tiny_model

pytest.importorskip("lm_eval")

WORDS = ["red", "a dark green", "blue", "nearly white", "black"]


def questions(count, blank=False):
    """Questions of two to four choices, the last two as long as each other or not."""
    rng = np.random.default_rng(0)
    rows = []
    for index in range(count):
        choices = list(rng.permutation(WORDS)[: rng.integers(2, 5)])
        text = f"Sky {index} is _ today, {index * 7} times." if blank else f"Sky {index} is"
        rows.append({"question": text, "choices": choices, "label": int(rng.integers(2))})
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two files of questions."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, rows in {"skies": questions(9), "blanks": questions(9, blank=True)}.items():
        lines = "\n".join(map(json.dumps, rows))
        (folder / f"{name}.jsonl").write_text(lines)
    return folder


@pytest.fixture(scope="module")
def loaded():
    return tiny_loaded("llama")


@pytest.fixture(scope="module")
def models(loaded):
    return {"dense": loaded.model, "other": tiny_model("llama", seed=1)}


def log_likelihood(loaded, model, context, rest):
    """Of ` rest` after a context, by one pass of the model in float64 without padding."""
    ids = torch.tensor([loaded.tokenizer(f"{context} {rest}")["input_ids"]])
    own = len(loaded.tokenizer(context)["input_ids"])
    logits = model(ids, use_cache=False).logits[0].double().log_softmax(-1)
    return sum(float(logits[place - 1, ids[0, place]]) for place in range(own, ids.shape[1]))


def test_answers_are_those_of_a_scoring_in_float64(folder, loaded, models):
    tasks = find_tasks(["skies", "blanks"], folder)
    found = {(a.task, a.measure): a for a in ask(loaded, models, tasks, batch=4)}
    assert list(found) == [("skies", "acc"), ("skies", "acc_norm"), ("blanks", "acc")]
    for name, model in models.items():
        double = model.double()
        for index, row in enumerate(questions(9)):
            sums = [log_likelihood(loaded, double, row["question"], c) for c in row["choices"]]
            by_length = [s / len(c) for s, c in zip(sums, row["choices"], strict=True)]
            for measure, scores in {"acc": sums, "acc_norm": by_length}.items():
                right = int(np.argmax(scores)) == row["label"]
                assert found["skies", measure].values[name][index] == right
        for index, row in enumerate(questions(9, blank=True)):
            before, after = row["question"].split("_")
            sums = [
                log_likelihood(loaded, double, before + c, after.strip()) for c in row["choices"]
            ]
            right = int(np.argmax(sums)) == row["label"]
            assert found["blanks", "acc"].values[name][index] == right
        model.float()
    assert {0.0, 1.0} == set(found["skies", "acc"].values["dense"])
    assert any((a.values["dense"] != a.values["other"]).any() for a in found.values())


def test_numbers_are_those_that_the_harness_prints(folder, loaded, models, tmp_path):
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    own = {
        "task": "own_skies",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "skies.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    (tmp_path / "own_skies.yaml").write_text(yaml.safe_dump(own))
    manager = TaskManager(include_path=tmp_path, include_defaults=False)
    tokenizer = tiny_loaded("llama").tokenizer
    for name, model in models.items():
        told = simple_evaluate(
            HFLM(pretrained=model, tokenizer=tokenizer), tasks=["own_skies"], task_manager=manager
        )["results"]["own_skies"]
        for answer in ask(loaded, {name: model}, find_tasks(["skies"], folder)):
            found = score(answer.values[name])
            assert found.value == told[f"{answer.measure},none"]
            assert found.error == pytest.approx(told[f"{answer.measure}_stderr,none"])


def test_the_first_questions_alone_can_be_asked(folder, loaded, models):
    tasks = find_tasks(["skies"], folder)
    all_of_them, some = (ask(loaded, models, tasks, limit=limit)[0] for limit in (None, 4))
    assert len(all_of_them.values["other"]) == 9
    for name in models:
        assert (some.values[name] == all_of_them.values[name][:4]).all()


def test_asking_leaves_tokenizer_and_model_as_they_were(folder, loaded, models, capfd):
    state = loaded.model.state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    seed = torch.random.get_rng_state()
    told = []
    ask(loaded, models, find_tasks(["skies"], folder), told=lambda *each: told.append(each))
    assert loaded.tokenizer.pad_token is None
    asked = sum(len(row["choices"]) for row in questions(9))
    assert told[-1][1:] == (2 * asked, "tasks, other") and asked < told[-1][0] <= 2 * asked
    assert all(torch.equal(state[name], before[name]) for name in before)
    assert torch.equal(seed, torch.random.get_rng_state())
    assert not any(model._forward_hooks for model in models.values())
    assert capfd.readouterr() == ("", "")


def test_a_task_that_there_is_not_is_named(folder, monkeypatch):
    monkeypatch.setattr(harness, "_names", lambda: frozenset({"arc_easy"}))
    for given, close in {"skiess": "skies", "arc_eazy": "arc_easy"}.items():
        with pytest.raises(DataError, match=rf"no task '{given}'.*did you mean '{close}'\?"):
            find_tasks([given], folder)
    with pytest.raises(DataError, match="no folder is named.*lists its own"):
        find_tasks(["quite another"], None)
    with pytest.raises(DataError, match=r"tasks_folder: .*nowhere is no folder"):
        find_tasks(["skies"], folder / "nowhere")
    assert find_tasks(["skies", "arc_easy"], folder)[1] == "arc_easy"
    assert find_tasks([], None) == ()


def test_a_package_that_is_missing_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(DataError, match=r"pip install 'evocompress\[eval\]'"):
        find_tasks(["skies"], folder)


@pytest.mark.long
def test_the_harness_s_own_tasks_are_asked_where_their_data_can_be_loaded(loaded, monkeypatch):
    """Its list of tasks takes some seconds."""
    rows = [
        {
            "question": row["question"],
            "choices": {"text": row["choices"], "label": list("ABCD")[: len(row["choices"])]},
            "answerKey": "AB"[row["label"]],
        }
        for row in questions(5)
    ]
    data = {split: Dataset.from_list(rows) for split in ("train", "validation", "test")}
    monkeypatch.setattr("datasets.load_dataset", lambda **_: data)
    tasks = find_tasks(["arc_easy"], None)
    acc, by_length = ask(loaded, {"dense": loaded.model}, tasks)
    assert (acc.measure, by_length.measure, acc.version) == ("acc", "acc_norm", "1.0")
    assert set(acc.values["dense"]) <= {0.0, 1.0} and len(acc.values["dense"]) == 5

    def refuse(**_):
        raise ConnectionError("no network")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    with pytest.raises(DataError, match=r"the task arc_easy cannot be loaded .*arc_easy\.jsonl"):
        ask(loaded, {"dense": loaded.model}, tasks)
    with pytest.raises(DataError, match=r"no task 'arc_eas'.*did you mean 'arc_easy'\?"):
        find_tasks(["arc_eas"], None)
