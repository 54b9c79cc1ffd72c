"""What an evaluation asks beside the held-out text: further texts, and questions of tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from transformers import PreTrainedModel

from evocompress.core.progress import Advance
from evocompress.evaluation.calibration.calibration import Calibration, load_calibration
from evocompress.evaluation.tasks import LocalTask, ask, find_tasks, score
from evocompress.pipeline.comparison import qualities
from evocompress.pipeline.context import RunContext

DENSE = "dense"
"""The model that others are compared with."""


def further_texts(context: RunContext) -> list[Calibration]:
    """The further texts of an evaluation, without what library and search have seen of them.

    Raises:
        DataError: One of them cannot be read, or has too little that is new.
    """
    own, found = context.config.calibration, []
    for source in context.config.evaluate.texts:
        with context.reporter.stage(f"text: {source}"):
            changed = own.model_copy(update={"heldout_source": source})
            found.append(load_calibration(changed, context.loaded))
    return found


def described(texts: Sequence[Calibration]) -> list[dict[str, Any]]:
    """What evaluation.json says of the texts themselves."""
    return [
        {
            "source": text.heldout_source,
            "sequences": len(text.heldout),
            "length": text.length,
            "repeated": text.repeated,
            "digest": text.heldout_fingerprint,
        }
        for text in texts
    ]


def measure_texts(
    context: RunContext, models: Mapping[str, PreTrainedModel], texts: Sequence[Calibration]
) -> dict[str, list[dict[str, Any]]]:
    """How good each model is on each text, by the models' names."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in models}
    batch = context.config.calibration.micro_batch
    for text in texts:
        measured = qualities(context.loaded, models, text.heldout, text.labels, batch)
        for name, values in measured.items():
            found[name].append({"source": text.heldout_source, **values})
    return found


def ask_tasks(
    context: RunContext, models: Mapping[str, PreTrainedModel], advance: Advance
) -> tuple[list[dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """The tasks that were asked, and each model's scores by the models' names.

    Raises:
        DataError: A task cannot be loaded.
    """
    config, bos = context.config.evaluate, context.config.calibration.bos
    tasks = find_tasks(config.tasks, config.tasks_folder)
    if not tasks:
        return [], {name: [] for name in models}
    found = ask(
        context.loaded,
        models,
        tasks,
        limit=config.limit,
        batch=config.tasks_batch,
        bos=None if bos == "auto" else bos,
        told=advance,
    )
    files = {task.name: task for task in tasks if isinstance(task, LocalTask)}
    asked = {each.task: _asked(each.task, files, each.version) for each in found}
    for each in found:
        asked[each.task]["questions"] = len(each.values[DENSE])
    scores: dict[str, list[dict[str, Any]]] = {
        name: [
            {
                "task": each.task,
                "measure": each.measure,
                **asdict(score(each.values[name], None if name == DENSE else each.values[DENSE])),
            }
            for each in found
        ]
        for name in models
    }
    return list(asked.values()), scores


def _asked(name: str, files: Mapping[str, LocalTask], version: str) -> dict[str, Any]:
    """What evaluation.json says of a task itself."""
    if (file := files.get(name)) is None:
        return {"name": name, "version": version}
    return {"name": name, "file": str(file.path), "digest": file.digest}
