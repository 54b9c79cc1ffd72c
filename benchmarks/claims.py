"""Claims of papers that are cheap to settle, on SmolLM2-135M.

- **Super weights** (Yu et al. 2024, 2411.07191): one scalar without which a model is lost. It is
  where a down projection meets its largest input with its largest output. Perplexity without it,
  and without the largest others of the same matrices, as many as ``OTHERS``.
- **The last quarter** of the blocks dropped, and head and last three blocks tuned (Lu et al. 2024,
  2411.15558), beside the blocks of least influence dropped (ShortGPT, 2403.03853), and each with
  all weights tuned, on the same tokens.
- **Repetition**: as many steps on a half, a quarter, … of the text, again and again.

Judged is the mean over held-out texts of the KL to the dense model; `…_se` is the standard error
of the mean over their sequences.

    python benchmarks/claims.py --calibration wikitext2-valid.txt --text books-train.txt
        --heldout wikitext2-test.txt books-heldout.txt --tokens 50000 --json claims.json

Every healing is a cell that is kept in the results folder: an interrupted run goes on.
``--claims`` takes some of them, ``--quick`` does all in a minute on a tiny random model.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bottom_line import BLOCKS, LastBlocks
from cells import cell
from common import Figure, emit
from healing import Setup, Winner, quick_setup
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from texts import parsed, text_parser
from torch import Tensor, nn

from evocompress import api
from evocompress.core.config import HealConfig, RunConfig
from evocompress.core.progress import Reporter
from evocompress.evaluation.calibration.fresh import FreshText
from evocompress.evaluation.heldout import heldout_quality
from evocompress.export.reload import read_checkpoint
from evocompress.healing import heal
from evocompress.pipeline.run_folder import RunFolder

CLAIMS = ("super weights", "last quarter", "repetition")
OTHERS = 7000
"""Of the largest other weights, as in the paper."""

SEARCHERS: dict[str, dict[str, Any]] = {
    "last": {"searcher": LastBlocks},
    "shortgpt": {"settings": {"search": {"name": "shortgpt"}}},
}
TUNED: dict[str, dict[str, Any]] = {
    "last 3, head": {"train": "last:3,head"},
    "all": {},
    "lora": {"train": "lora", "learning_rate": 1e-3},
}
TIMES = (1, 2, 4, 8)
"""How often the text is repeated."""

Row = dict[str, Any]
Weight = tuple[int, int, int]
"""Matrix, row and column."""
Removal = Callable[[Sequence[nn.Linear], Weight], None]


def main() -> None:
    """Measures or reads every cell and prints the figures."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        setup = _quick(Path(scratch)) if arguments.quick else _full(arguments)
        figures: dict[str, Figure] = {}
        for claim in arguments.claims:
            rows = list(MEASURED[claim](setup))
            _print(claim, rows)
            figures |= {
                f"{row['name'].replace(', ', '_').replace(' ', '_')}_{key}": value
                for row in rows
                for key, value in row.items()
                if isinstance(value, float)
            }
        emit("claims", figures, arguments.json)


def _arguments() -> argparse.Namespace:
    parser = text_parser(__doc__.splitlines()[0], "claims")
    parser.add_argument("--tokens", type=int, default=50_000, help="to heal with")
    parser.add_argument("--claims", nargs="+", default=list(CLAIMS), choices=CLAIMS)
    return parsed(parser)


def _full(arguments: argparse.Namespace) -> Setup:
    source = {arguments.text: 1.0, arguments.calibration: 1.0}
    return Setup.of_files(
        arguments.results,
        arguments.calibration,
        arguments.heldout,
        ["widths"],
        sequences=arguments.sequences,
        tokens=(arguments.tokens,),
        healing={"source": source},
    )


def _quick(folder: Path) -> Setup:
    setup = quick_setup(folder)
    return replace(setup, healing={**setup.healing, "source": str(folder / "two.txt")})


class Dropped(Winner):
    """The model without a quarter of its blocks, and its healings."""

    def __init__(self, setup: Setup, which: str) -> None:
        """Drops nothing yet."""
        super().__init__(setup, which)
        self._which = which

    @cached_property
    def run(self) -> RunFolder:
        """The run, its checkpoint made where that is not done."""
        folder = RunFolder(self.folder / "run")
        settings = {
            "name": "run",
            "runs": self.folder,
            "model": dict(self.setup.model),
            "calibration": dict(self.setup.calibration),
            "space": {**BLOCKS, "budget": {"body_params": 0.75}},
            "search": {},
        }
        how = SEARCHERS[self._which]
        if not folder.checkpoint.exists():
            config = RunConfig.model_validate(settings | how.get("settings", {}))
            again, searcher = folder.path.exists(), how.get("searcher")
            api.search(config, searcher=searcher, resume=again, reporter=Reporter())
            api.materialize(folder.path)
        return folder

    def healed(self, name: str, changes: Mapping[str, Any], times: int = 1) -> Row:
        """The checkpoint after a healing on text that is repeated so many times."""

        def compute() -> Row:
            student, context = self.run.checkpoint, self.context
            settings = {**self.setup.healing, **changes, "tokens": self.setup.tokens[-1]}
            config = HealConfig.model_validate(settings)
            length = context.calibration.length
            config = config.sized(length).at(length)
            cut, calibration = context.config.calibration, context.calibration
            text = FreshText(config, cut, context.loaded, calibration)
            train, kept = text.take_both(config.sequences // times, config.validation_sequences)
            out = self.folder / "healing"
            shutil.rmtree(out, ignore_errors=True)
            report = heal(student, context.loaded, train, kept, config, out)
            return {"name": name} | self.quality(Path(report.checkpoint))

        return cell(self.setup.folder / "cells", name, compute)

    def unhealed(self) -> Row:
        """The checkpoint as it is."""
        name = f"{self._which} not healed"

        def compute() -> Row:
            return {"name": name} | self.quality(self.run.checkpoint)

        return cell(self.setup.folder / "cells", name, compute)

    def quality(self, path: Path) -> Row:
        """Mean KL over the held-out texts."""
        dense = self.context.loaded.model
        return _quality(dense, read_checkpoint(path, dense), self.judges)


def _quality(dense: Any, model: Any, judges: Mapping[str, Tensor]) -> Row:
    """KL to the dense model, its standard error, and perplexity, means over texts."""
    found = [heldout_quality(dense, {"it": model}, ids)["it"] for ids in judges.values()]
    errors = [np.std(q.kl_per_sequence, ddof=1) / len(q.kl_per_sequence) ** 0.5 for q in found]
    return {
        "kl": float(np.mean([quality.kl for quality in found])),
        "kl_se": float(np.linalg.norm(errors) / len(errors)),
        "ppl": float(np.mean([quality.perplexity for quality in found])),
    }


def _last_quarter(setup: Setup) -> Iterator[Row]:
    for which in SEARCHERS:
        dropped = Dropped(setup, which)
        yield dropped.unhealed()
        for name, changes in TUNED.items():
            yield dropped.healed(f"{which} {name}", changes)


def _repetition(setup: Setup) -> Iterator[Row]:
    dropped = Dropped(setup, "shortgpt")
    for times in TIMES:
        yield dropped.healed(f"repeated {times}", {}, times)


def _super_weights(setup: Setup) -> Iterator[Row]:
    any_run = Dropped(setup, "last")
    for name, without in WITHOUT.items():

        def compute(name: str = name, without: Removal = without) -> Row:
            dense = any_run.context.loaded.model
            changed = deepcopy(dense)
            matrices = [m for n, m in changed.named_modules() if n.endswith("down_proj")]
            ids = any_run.context.calibration.search[0]
            without(matrices, _super_weight(changed, matrices, ids))
            return {"name": name} | _quality(dense, changed, any_run.judges)

        yield cell(setup.folder / "cells", name, compute)


def _super_weight(model: nn.Module, matrices: Sequence[nn.Linear], ids: Tensor) -> Weight:
    """The matrix, row and column of the largest product of a weight with an input."""
    largest = [torch.zeros(0)] * len(matrices)
    with ExitStack() as stack, torch.inference_mode():
        for number, matrix in enumerate(matrices):

            def keep(_: nn.Module, inputs: tuple[Tensor], number: int = number) -> None:
                largest[number] = inputs[0].abs().flatten(0, -2).amax(0).float()

            stack.callback(matrix.register_forward_pre_hook(keep).remove)
        model(ids)
    products = [m.weight.abs() * x for m, x in zip(matrices, largest, strict=True)]
    number = int(torch.stack([product.max() for product in products]).argmax())
    row, column = np.unravel_index(int(products[number].argmax()), products[number].shape)
    return number, int(row), int(column)


def _without_it(matrices: Sequence[nn.Linear], weight: Weight) -> None:
    number, row, column = weight
    matrices[number].weight.data[row, column] = 0


def _without_others(matrices: Sequence[nn.Linear], weight: Weight) -> None:
    """Zeroes the largest weights of all matrices but this one."""
    number, row, column = weight
    kept = matrices[number].weight.data[row, column].clone()
    sizes = torch.cat([matrix.weight.data.abs().flatten().float() for matrix in matrices])
    least = sizes.topk(min(OTHERS + 1, len(sizes) // 2)).values[-1]
    for matrix in matrices:
        matrix.weight.data[matrix.weight.data.abs() >= least] = 0
    matrices[number].weight.data[row, column] = kept


WITHOUT: dict[str, Removal] = {
    "nothing": lambda matrices, weight: None,
    "super weight": _without_it,
    "largest others": _without_others,
}

MEASURED: dict[str, Callable[[Setup], Iterator[Row]]] = {
    "super weights": _super_weights,
    "last quarter": _last_quarter,
    "repetition": _repetition,
}


def _print(claim: str, rows: Sequence[Row]) -> None:
    table = Table("", "KL", "perplexity", title=claim, box=SIMPLE)
    for row in rows:
        table.add_row(row["name"], f"{row['kl']:.4f} ± {row['kl_se']:.4f}", f"{row['ppl']:.4g}")
    Console().print(table)


if __name__ == "__main__":
    main()
