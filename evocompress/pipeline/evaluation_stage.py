"""The evaluation stage of a run: what is compared on held-out text, and what is written of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from evocompress.core.config import EvaluateConfig
from evocompress.core.environment import describe, environment
from evocompress.core.files import write_json
from evocompress.evaluation.tasks import PACKAGE
from evocompress.export import read_record
from evocompress.pipeline.compared_models import models_to_compare
from evocompress.pipeline.comparison import compare
from evocompress.pipeline.context import RunContext
from evocompress.pipeline.early_checks import check_early
from evocompress.pipeline.finished import Unchanged
from evocompress.pipeline.texts_and_tasks import (
    ask_tasks,
    described,
    further_texts,
    measure_texts,
)


def evaluate(context: RunContext) -> Path:
    """Compares the models of a finished run; see `evocompress.api.evaluate`."""
    check_early(context.config, search=False, folder=context.folder)
    unchanged = Unchanged(context)
    unchanged.check_model()
    calibration, config = unchanged.check_text(), _settings(context)
    texts = further_texts(context)
    library = context.existing_library()
    unchanged.check_library(library)
    with context.folder.locked(), context.reporter.stage("evaluate") as advance:
        compared = models_to_compare(context, library, unchanged)
        rows = compare(
            context.loaded,
            compared,
            calibration.heldout,
            config,
            batch=context.config.calibration.micro_batch,
            length=context.space.cost_model.length,
            labels=calibration.labels,
        )
        models = {name: each.model for name, each in compared.items()}
        measured = measure_texts(context, models, texts)
        asked, answered = ask_tasks(context, models, advance)
        rows = [
            {**row, "texts": measured[row["name"]], "tasks": answered[row["name"]]} for row in rows
        ]
        more = {"texts": described(texts), "tasks": asked}
        made = record(context, config, rows, context.folder.checkpoint)
        write_json(context.folder.evaluation, made | more)
    return context.folder.evaluation


def _settings(context: RunContext) -> EvaluateConfig:
    """Those of the run, without latencies where the blocks of the dense model come and go."""
    config = context.config.evaluate
    if context.loaded.cache is None or not config.latency:
        return config
    context.reporter.say("no latencies: the dense model's blocks come and go while it runs")
    return config.model_copy(update={"latency": False})


def record(
    context: RunContext, config: EvaluateConfig, rows: Sequence[dict[str, Any]], checkpoint: Path
) -> dict[str, Any]:
    """The content of evaluation.json, of models among which is that of a checkpoint."""
    model, calibration = context.loaded.model, context.calibration
    packages = [*context.packages, *([PACKAGE] if config.tasks else [])]
    return {
        "candidate": read_record(checkpoint).id,
        "heldout": {
            "source": calibration.heldout_source,
            "self_written": calibration.heldout_source == "self",
            "sequences": len(calibration.heldout),
            "length": calibration.length,
            "opening": calibration.opening,
            "repeated": calibration.repeated,
            "digest": calibration.heldout_fingerprint,
        },
        "settings": config.model_dump(mode="json"),
        "device": f"{describe(model.device)}, {torch.get_num_threads()} threads",
        "environment": environment(model.device, model.dtype, "local", packages),
        "rows": rows,
    }
