"""The whole job on SmolLM2-135M: search, materialize, heal, evaluate, report."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path

from evocompress import api
from evocompress.core.config_file import load_config
from evocompress.core.progress import Reporter

CONFIG = Path(__file__).with_name("demo.yaml")


def demo(runs: Path) -> Path:
    """Runs every stage in a new folder below `runs` and returns the folder."""
    reporter = Reporter()
    config = load_config(CONFIG, [f"runs={json.dumps(str(runs))}", f"name={_free_name(runs)}"])
    folder = api.search(config, reporter=reporter)
    api.materialize(folder, reporter=reporter)
    api.heal(folder, reporter=reporter)
    api.evaluate(folder, reporter=reporter)
    api.report(folder)
    return folder


def _free_name(runs: Path) -> str:
    names = (f"demo-{number}" if number else "demo" for number in count())
    return next(name for name in names if not (runs / name).exists())
