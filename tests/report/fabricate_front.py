"""A finished search for a front of KL and latency over widths and drops, with made-up numbers."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from fabricate import environment, ratio, row, timing, write_json, write_lines

from evocompress.core.config import (
    DropSpace,
    EvaluateConfig,
    ModelConfig,
    RunConfig,
    SearchConfig,
    SpaceConfig,
    WidthSpace,
)
from evocompress.core.config_file import dump_config
from evocompress.core.pareto import hypervolume, knee, non_dominated
from evocompress.core.types import DROP, Candidate, Level
from evocompress.testing.decoders import SMOLLM2_135M

DENSE = {"params": 134_515_008.0, "latency": 0.8, "decode_latency": 0.04}
LABELS = {"uniform width": 5, "FLAP": 5}


def candidate(share: float, rng: np.random.Generator) -> Candidate:
    """About a share of every layer, a few of them dropped."""
    levels = {}
    for unit in SMOLLM2_135M.units()[1:]:
        kept = float(np.clip(rng.normal(share, 0.15), 0.05, 1.0))
        if unit.kind == "mlp" and kept < 0.95:
            levels[unit.name] = Level(channels=max(64, int(kept * 1536 / 64) * 64))
        if unit.kind == "attention" and kept < 0.6:
            levels[unit.name] = Level(kv_groups=1 + int(kept * 2.99), group_heads=2 + (kept > 0.5))
        if unit.kind in ("attention", "mlp") and kept < 0.12:
            levels[unit.name] = DROP
    return Candidate(tuple(sorted(levels.items())))


def rows(rng: np.random.Generator) -> list[dict[str, Any]]:
    """The content of front.json, with the candidate beside each row."""
    found = []
    for label, count in {"": 26, **LABELS}.items():
        for share in np.linspace(0.4, 0.97, count):
            value = (
                3.2 * (1.02 - share) ** 2 * (1.0 if not label else 1.5 if label == "FLAP" else 2)
            )
            value *= float(np.exp(rng.exponential(0.08)))
            costs = {**DENSE, "params": round(share * DENSE["params"])}
            costs |= {name: share * DENSE[name] for name in ("latency", "decode_latency")}
            made = candidate(share, rng)
            point = {"id": made.id, "value": value, "costs": costs, "tokens": 8176}
            found.append({**point, "candidate": made, **({"label": label} if label else {})})
    kept = non_dominated(points(found))
    return [{**row, "non_dominated": bool(keep)} for row, keep in zip(found, kept, strict=True)]


def points(rows: list[dict[str, Any]]) -> np.ndarray:
    return np.array([[row["value"], row["costs"]["latency"] / DENSE["latency"]] for row in rows])


def front_run(folder: Path) -> Path:
    """Writes every file of the run into `folder`."""
    found = rows(np.random.default_rng(3))
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(config()))
    write_json(folder / "environment.json", environment())
    model = {"architecture": asdict(SMOLLM2_135M.architecture())}
    write_json(folder / "units.json", {"units": [asdict(u) for u in SMOLLM2_135M.units()], **model})
    best = found[knee(points(found))]
    write_lines(folder / "journal.jsonl", journal(found, best["id"]))
    write_json(
        folder / "front.json", [{k: v for k, v in r.items() if k != "candidate"} for r in found]
    )
    write_json(folder / "winner.json", winner(found, best))
    write_json(folder / "evaluation.json", evaluation(best))
    return folder


def config() -> RunConfig:
    return RunConfig(
        name="smollm2-front",
        model=ModelConfig(source="HuggingFaceTB/SmolLM2-135M"),
        space=SpaceConfig(width=WidthSpace(), drop=DropSpace()),
        search=SearchConfig(name="nsga2", tokens=660_000),
    )


def journal(found: list[dict[str, Any]], best: str) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = [{"type": "run", "seed": 0}]
    lines += [
        {"type": "candidate", "id": row["id"], "levels": row["candidate"].to_json()}
        for row in found
    ]
    state = {"requested": 41_000, "computed": 41_000, "incumbent": best, "value": 0.9}
    return [*lines, {"type": "step", "step": 0, **state}]


def winner(found: list[dict[str, Any]], best: dict[str, Any]) -> dict[str, Any]:
    worst = max(row["value"] for row in found)
    reference = np.array([worst, 1.0])
    return {
        "id": best["id"],
        "value": best["value"],
        "levels": best["candidate"].to_json(),
        "costs": best["costs"],
        "dense_costs": DENSE,
        "budget": {},
        "front": {
            "axes": ["latency"],
            "reference": {"value": worst, "latency": DENSE["latency"]},
            "hypervolume": hypervolume(points(found), reference),
            "knee": best["id"],
        },
    }


def evaluation(best: dict[str, Any]) -> dict[str, Any]:
    share = best["costs"]["latency"] / DENSE["latency"]
    timed = {
        "prefill_ms": timing(820.0 * share),
        "decode_ms_per_token": timing(41.0 * share),
        "prefill_ratio": ratio(share),
        "decode_ratio": ratio(share),
        "params": best["costs"]["params"],
        "nonzeros": best["costs"]["params"],
    }
    return {
        "heldout": {"source": "self", "self_written": True, "sequences": 16, "length": 512},
        "settings": EvaluateConfig().model_dump(mode="json"),
        "device": "Example 9000, 2 threads",
        "rows": [
            row("dense", 1.0, 0.0, 4.31, predicted=DENSE),
            row("searched", share, best["value"], 7.9, predicted=best["costs"], **timed),
        ],
    }
