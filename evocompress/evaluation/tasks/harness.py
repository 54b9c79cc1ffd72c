"""Tasks that lm-evaluation-harness asks models in memory, which takes seconds to be imported."""

from __future__ import annotations

import copy
import difflib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from evocompress.core.arrays import Floats
from evocompress.core.errors import DataError, one_line
from evocompress.core.progress import Told, tell_nobody
from evocompress.evaluation.tasks.files import ENDING, LocalTask, read_task
from evocompress.models.loading import LoadedModel

PACKAGE = "lm_eval"

FILTER = "none"
"""What the harness calls answers that are taken as they are."""

BARS = ("api.task", "api.model", "models.huggingface")
"""Modules of the harness that draw progress bars."""

SEED = 1234
"""Of examples before a question, as of the harness's own command."""

FoundTask = LocalTask | str
"""The questions of a file, or the name of one of the harness's own tasks."""


@dataclass(frozen=True)
class Answers:
    """How models did on each question of a task, by one measure.

    Attributes:
        task: Name of the task.
        measure: Such as ``acc`` (the likeliest choice is the right one) or ``acc_norm`` (likeliest
            for its length in characters).
        values: One for each question (N,), by the models' names.
        version: Of the task, where it is the harness's own.

    Examples:
        >>> found = Answers("sums", "acc", {"dense": np.array([1.0, 0.0])})
        >>> found.values["dense"].mean()
        np.float64(0.5)
    """

    task: str
    measure: str
    values: Mapping[str, Floats]
    version: str = ""


def find_tasks(names: Sequence[str], folder: Path | None) -> tuple[FoundTask, ...]:
    """The tasks of these names: files ``NAME.jsonl`` of the folder, else the harness's own.

    Raises:
        DataError: There is no such task, folder or package.
        ConfigError: A line of a file is no question.
    """
    if not names:
        return ()
    if find_spec(PACKAGE) is None:
        raise DataError(
            "evaluate.tasks needs a package that is not installed: pip install 'evocompress[eval]'"
        )
    if folder is not None and not (folder := folder.expanduser()).is_dir():
        raise DataError(f"evaluate.tasks_folder: {folder} is no folder: name that of NAME{ENDING}")
    files = {path.stem: path for path in folder.glob(f"*{ENDING}")} if folder else {}
    tasks = tuple(read_task(name, files[name]) if name in files else name for name in names)
    _check_own([task for task in tasks if isinstance(task, str)], files, folder)
    return tasks


def _check_own(names: Sequence[str], files: Mapping[str, Path], folder: Path | None) -> None:
    """Refuses a name that is neither that of a file nor known to the harness."""
    if not names:
        return
    known = _names()
    for name in names:
        if name not in known:
            there = f"{folder} has no {name}{ENDING}, and" if folder else "no folder is named, and"
            close = difflib.get_close_matches(name, [*files, *known], n=1, cutoff=0.6)
            hint = f"did you mean '{close[0]}'?" if close else "'lm-eval ls tasks' lists its own"
            raise DataError(
                f"evaluate.tasks: there is no task '{name}': {there} lm-evaluation-harness has no "
                f"task of that name; {hint}"
            )


@cache
def _names() -> frozenset[str]:
    """The names of the harness's own tasks, which it takes some seconds to list."""
    from lm_eval.tasks import TaskManager

    with _quiet():
        return frozenset(TaskManager().all_tasks)


def ask(
    loaded: LoadedModel,
    models: Mapping[str, PreTrainedModel],
    tasks: Sequence[FoundTask],
    *,
    limit: int | None = None,
    batch: int = 8,
    bos: bool | None = None,
    told: Told = tell_nobody,
) -> list[Answers]:
    """How models answer the questions of tasks, by every measure that is a mean over them.

    Args:
        loaded: The dense model, whose tokenizer and context all models have.
        models: What to ask, by name.
        tasks: As `find_tasks` gives them.
        limit: Only the first questions of each.
        batch: Sequences of a forward pass, which are padded on the right.
        bos: Whether texts begin with the beginning-of-text token; ``None`` as the tokenizer does.
        told: Told about progress; the total is 0 where it is not known.

    Raises:
        DataError: One of the harness's own tasks cannot be loaded, or has no such measure.
    """
    found: dict[tuple[str, str], dict[str, Floats]] = {}
    with _quiet():
        ready, each, done = _ready(tasks), _sequences(tasks, limit), 0
        for name, model in models.items():
            with _counted(model, name, done, each * len(models), told):
                done += each
                results = _ask(loaded, model, ready, limit=limit, batch=batch, bos=bos)
            for key, values in _values(results, ready):
                found.setdefault(key, {})[name] = values
    local = {task.name for task in tasks if isinstance(task, LocalTask)}
    return [
        Answers(task, measure, values, "" if task in local else str(ready[task].VERSION))
        for (task, measure), values in found.items()
    ]


def _ready(tasks: Sequence[FoundTask]) -> dict[str, Any]:
    """Tasks of the harness by their names; a group is those that it consists of."""
    from lm_eval.tasks import TaskManager

    own = [task for task in tasks if isinstance(task, str)]
    manager = TaskManager() if own else None
    found: dict[str, Any] = {}
    for task in tasks:
        if isinstance(task, LocalTask):
            found[task.name] = _local(task)
            continue
        assert manager is not None
        try:
            found |= manager.load([task])["tasks"]
        except Exception as error:  # data sets and code of tasks fail with any type of error
            raise DataError(
                f"the task {task} cannot be loaded (no network, or no such data set): "
                f"{one_line(error)}; offline, give its questions as {task}{ENDING} in "
                "evaluate.tasks_folder"
            ) from None
    for each in found.values():
        each.set_fewshot_seed(seed=SEED)
    return found


def _local(task: LocalTask) -> Any:
    """A task of the harness with the questions of a file, asked without examples."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    measures = ["acc"] if task.blanks else ["acc", "acc_norm"]
    settings = {
        "task": task.name,
        "custom_dataset": lambda **_: {"test": Dataset.from_list(task.rows())},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "question",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        "target_delimiter": " ",
        "num_fewshot": 0,
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in measures
        ],
    }
    return ConfigurableTask(config=settings)


def _ask(
    loaded: LoadedModel,
    model: PreTrainedModel,
    tasks: Mapping[str, Any],
    *,
    limit: int | None,
    batch: int,
    bos: bool | None,
) -> Any:
    """The results of the harness for one model, with the answer to every question."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    asked = HFLM(
        pretrained=model,
        backend="causal",
        tokenizer=copy.deepcopy(loaded.tokenizer),  # the harness gives its own a padding token
        max_length=loaded.family.architecture(loaded.model).context,
        batch_size=batch,
        add_bos_token=bos,
        softmax_dtype=torch.float32,
    )
    return evaluate(
        lm=asked, task_dict={"tasks": dict(tasks)}, limit=limit, bootstrap_iters=0, log_samples=True
    )


def _values(results: Any, tasks: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], Floats]]:
    """For each task and measure that is a mean, the value of each question."""
    from lm_eval.api.metrics import mean

    for name, task in tasks.items():
        means = [measure for measure, kind in task.aggregation().items() if kind is mean]
        samples = results["samples"][name]
        if not means:
            raise DataError(f"the task {name} has no measure that is a mean over its questions")
        for wanted in dict.fromkeys(sample["filter"] for sample in samples):
            chosen = [sample for sample in samples if sample["filter"] == wanted]
            for measure in means:
                title = measure if wanted == FILTER else f"{measure}, {wanted}"
                values = np.array([float(sample[measure]) for sample in chosen])
                yield (name, title), values


def _sequences(tasks: Sequence[FoundTask], limit: int | None) -> int:
    """How many sequences a model is given at most; 0 with tasks that are not of files."""
    counts = [
        sum(len(question.choices) for question in task.questions[:limit])
        for task in tasks
        if isinstance(task, LocalTask)
    ]
    return sum(counts) if len(counts) == len(tasks) else 0


@contextmanager
def _counted(
    model: PreTrainedModel, name: str, before: int, total: int, told: Told
) -> Iterator[None]:
    """Tells how many sequences a model has been given, after those `before` of all models."""
    done = 0

    def count(_: Any, given: tuple[Any, ...], __: Any) -> None:
        nonlocal done
        done += len(given[0]) if given else 0
        told(before + done, total, f"tasks, {name}")

    hook = model.register_forward_hook(count)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the progress bars and warnings of the harness for a while."""
    import lm_eval.models.huggingface  # noqa: F401

    log = logging.getLogger(PACKAGE)
    before = log.level
    log.setLevel(logging.ERROR)
    patches = [patch(f"{PACKAGE}.{module}.tqdm", _no_bar) for module in BARS]
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in patches:
            each.stop()
        log.setLevel(before)


def _no_bar(*items: Any, **settings: Any) -> Any:
    """A progress bar that is not shown."""
    return tqdm(*items, **{**settings, "disable": True})
