"""What repairs without training bring: a model with zeros everywhere alike, on held-out text.

Every criterion alone and followed by refinements; KL to the dense model and perplexity of the even
candidate, before any healing, and the seconds of its level library.

    python benchmarks/refinements.py --calibration valid.txt --heldout test.txt --json out.json

The model is SmolLM2-135M, or that of ``--model``. The criteria with ``+bias`` are only for one
whose matrices have biases: name them, ``--model gpt2 --criteria wanda wanda+bias``.

Every criterion is a cell that is kept in the results folder: an interrupted run goes on.
``--quick`` does all in a minute on a tiny random GPT-2, with biases.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from cells import cell
from common import Figure, emit
from healing import Setup, quick_setup
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from texts import parsed, text_parser

from evocompress.core.config import RunConfig
from evocompress.core.progress import Silent
from evocompress.evaluation.calibration.sources import token_streams
from evocompress.evaluation.heldout import heldout_quality
from evocompress.export import materialize
from evocompress.export.reload import read_checkpoint
from evocompress.pipeline.context import RunContext
from evocompress.pipeline.run_folder import RunFolder
from evocompress.space import sampling
from evocompress.testing.tiny import tiny_checkpoint

CRITERIA = (
    "magnitude",
    "magnitude+update",
    "wanda",
    "wanda+swaps",
    "wanda+update",
    "wanda+swaps+update",
    "sparsegpt",
    "sparsegpt+update",
)

BIASED = ("magnitude+bias", "wanda+bias", "sparsegpt+bias", "sparsegpt+update+bias")
"""Where matrices have biases."""


def main() -> None:
    """Makes or reads every cell and prints the figures."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.quick:
            setup = quick_setup(Path(scratch))
            biased = {"source": str(tiny_checkpoint(Path(scratch) / "biased", "gpt2"))}
            setup = replace(setup, model=biased)
        else:
            model = arguments.model
            results = arguments.results / Path(model).name if model else arguments.results
            setup = Setup.of_files(results, arguments.calibration, arguments.heldout[:1], ["zeros"])
            setup = replace(setup, model={"source": model or setup.model["source"]})
        setup = replace(setup, spaces={"zeros": setup.spaces["zeros"]})
        figures: dict[str, Figure] = {}
        table = Table("criterion", "KL", "perplexity", "seconds", title="refinements", box=SIMPLE)
        for name in arguments.criteria or (CRITERIA + BIASED if arguments.quick else CRITERIA):
            row = cell(setup.folder, name, partial(_measured, setup, name))
            table.add_row(name, *(f"{row[key]:.4g}" for key in ("kl", "perplexity", "seconds")))
            figures |= {f"{name}_{key}": value for key, value in row.items()}
        Console().print(table)
        emit("refinements", figures, arguments.json)


def _arguments() -> argparse.Namespace:
    parser = text_parser(__doc__.splitlines()[0], "refinements", heals=False)
    parser.add_argument("--model", help="a folder or hub id in place of SmolLM2-135M")
    parser.add_argument("--criteria", nargs="+")
    return parsed(parser)


def _measured(setup: Setup, criterion: str) -> dict[str, Any]:
    """The even candidate with the criterion's weights."""
    sparsity = dict(setup.spaces["zeros"]["sparsity"], levels=1)
    config = RunConfig.model_validate(
        {
            "name": "run",
            "runs": str(setup.folder),
            "model": dict(setup.model),
            "calibration": dict(setup.calibration),
            "space": {"sparsity": sparsity},
            "library": {"criterion": criterion},
            "search": {"name": "uniform"},
        }
    )
    folder = setup.folder / "present"
    shutil.rmtree(folder, ignore_errors=True)
    context = RunContext(config, RunFolder(folder), Silent())
    loaded, space = context.loaded, context.space
    began = time.monotonic()
    library = context.library
    seconds = time.monotonic() - began
    even = space.candidate(sampling.uniform(space))
    model = read_checkpoint(materialize(loaded, library, even, folder / "even"), loaded.model)
    assert loaded.tokenizer is not None
    length = config.calibration.length
    tokens = next(iter(token_streams(setup.heldout[0], loaded.tokenizer)))
    sequences = tokens[: setup.sequences * length].view(-1, length)
    found = heldout_quality(loaded.model, {"even": model}, sequences)["even"]
    shutil.rmtree(folder)
    return {"kl": found.kl, "perplexity": found.perplexity, "seconds": seconds}


if __name__ == "__main__":
    main()
