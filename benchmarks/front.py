"""A front of quality against latency by one NSGA-II run, beside uniform width and FLAP.

SmolLM2-135M on WikiText-2: a library of 128 sequences of 512 tokens, 64 more for the search, at
most 440,000 requested tokens in all. The front of the search, the even candidates and those of
FLAP's ranking are then measured on the first 20 sequences of the held-out file, over the whole
vocabulary.

Figures: `points`, those of the front between 0.4 and 1.0 of the dense model's predicted prefill
latency; the hypervolume over (held-out KL, fraction of the latency) of the `front`, of what the
search added to it (`search`: without the even candidates and FLAP's), of the `uniform` and `flap`
points and of both together (`baselines`), all with the same reference point, the worst KL of any
point and the dense latency; `ratio` of what the search added to the baselines.

    python benchmarks/front.py --calibration valid.txt --heldout test.txt --json out.json

The run and every measurement are kept in the results folder: an interrupted one goes on. Open
report.html in the run's folder to see the front. ``--quick`` does the same on a tiny random model.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from common import Figure, emit
from heldout import heldout

from evocompress import api
from evocompress.core.config import RunConfig
from evocompress.core.files import read_json
from evocompress.core.pareto import hypervolume, non_dominated
from evocompress.core.progress import Reporter
from evocompress.pipeline.context import RunContext
from evocompress.pipeline.journal import read_candidates
from evocompress.pipeline.run_folder import RunFolder

LOWEST, STEP = 0.4, 0.02
BASELINES = ("uniform", "flap")


def main() -> None:
    """Runs or continues the search and prints its figures."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        config = _quick(Path(scratch)) if arguments.quick else _full(arguments)
        emit("front", _figures(config), arguments.json)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calibration", help="text file for library and search")
    parser.add_argument("--heldout", help="text file for the held-out sequences")
    parser.add_argument("--results", type=Path, default=Path("results/front"))
    parser.add_argument("--json")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if not arguments.quick and not (arguments.calibration and arguments.heldout):
        parser.error("give --calibration and --heldout, or --quick")
    return arguments


def _full(arguments: argparse.Namespace) -> RunConfig:
    search = {
        "effect_rounds": 1,
        "effect_levels": 2,
        "population": 40,
        "candidate_tokens": 1024,
        "front_tokens": 4096,
        "front_size": 24,
        "tokens": 440_000,
    }
    return _config(
        arguments.results,
        model={"source": "demo:smollm2-135m", "dtype": "auto"},
        calibration={
            "source": arguments.calibration,
            "heldout_source": arguments.heldout,
            "library_sequences": 128,
            "search_sequences": 64,
            "heldout_sequences": 20,
            "length": 512,
            "micro_batch": 2,
        },
        width={"channels": [step / 8 for step in range(1, 8)], "multiple_of": 64},
        latency={},
        search=search,
    )


def _quick(folder: Path) -> RunConfig:
    from evocompress.testing.tiny import tiny_checkpoint

    text = folder / "text.txt"
    text.write_text(" ".join(f"word{number * number % 97}" for number in range(4000)))
    search = {
        "generations": 3,
        "population": 12,
        "candidate_tokens": 64,
        "front_tokens": 128,
        "front_size": 8,
        "rungs": 3,
    }
    return _config(
        folder / "results",
        model={"source": str(tiny_checkpoint(folder / "model", "llama"))},
        calibration={
            "source": str(text),
            "library_sequences": 8,
            "search_sequences": 16,
            "heldout_sequences": 4,
            "length": 32,
            "micro_batch": 2,
        },
        width={"channels": [0.25, 0.5, 0.75], "multiple_of": 8},
        latency={
            "prefill": (1, 32),
            "decode": (1, 16),
            "repeats": 3,
            "validation": 4,
            "table": folder / "latency.json",
        },
        search=search,
    )


def _config(
    results: Path,
    *,
    model: Mapping[str, Any],
    calibration: Mapping[str, Any],
    width: Mapping[str, Any],
    latency: Mapping[str, Any],
    search: Mapping[str, Any],
) -> RunConfig:
    fixed = {
        "name": "nsga2",
        "objectives": ["latency"],
        "range": {"latency": [LOWEST, 1.0]},
        "reference": list(BASELINES),
    }
    return RunConfig.model_validate(
        {
            "name": "run",
            "runs": results,
            "model": model,
            "calibration": calibration,
            "space": {"width": width, "drop": {}},
            "latency": latency,
            "search": {**fixed, **search},
        }
    )


def _figures(config: RunConfig) -> dict[str, Figure]:
    reporter = Reporter()
    resume = RunFolder(config.folder).path.exists()
    folder = RunFolder(api.search(config, resume=resume, reporter=reporter))
    api.report(folder.path)
    context = RunContext(config, folder, reporter)
    rows = read_json(folder.front)
    dense = context.space.cost_model.dense()["latency"]
    qualities = _qualities(context, [row["id"] for row in rows])
    points = {row["id"]: (qualities[row["id"]], row["costs"]["latency"] / dense) for row in rows}
    # The lower end counts as reached a little above it: widths come in steps.
    inside = [row for row in rows if LOWEST - STEP <= points[row["id"]][1] <= 1.0]
    groups = {
        "front": [row["id"] for row in inside if row["non_dominated"]],
        "search": [row["id"] for row in inside if row["non_dominated"] and not row.get("label")],
        **{name: [row["id"] for row in inside if _is(row, name)] for name in BASELINES},
    }
    groups["baselines"] = groups["uniform"] + groups["flap"]
    found = {name: np.array([points[i] for i in members]) for name, members in groups.items()}
    reference = np.array([max(value for value, _ in points.values()), 1.0])
    volumes = {name: hypervolume(members, reference) for name, members in found.items()}
    return {
        "points": len(found["front"]),
        "points_of_search": len(found["search"]),
        "points_on_heldout_front": int(non_dominated(found["front"]).sum()),
        "lowest_latency": float(found["front"][:, 1].min()),
        "highest_latency": float(found["front"][:, 1].max()),
        "baseline_points": len(found["baselines"]),
        **{f"hypervolume_{name}": volume for name, volume in volumes.items()},
        "ratio": volumes["search"] / volumes["baselines"],
        "reference_kl": float(reference[0]),
    }


def _is(row: Mapping[str, Any], name: str) -> bool:
    """Whether a row of the front is a point of a baseline."""
    return name in str(row.get("label") or "").lower()


def _qualities(context: RunContext, ids: list[str]) -> dict[str, float]:
    """Held-out KL of candidates of the journal, by id."""
    candidates = read_candidates(context.folder.journal)
    folder = context.folder.path / "quality"
    return {identity: heldout(context, candidates[identity], folder)["kl"] for identity in ids}


if __name__ == "__main__":
    main()
