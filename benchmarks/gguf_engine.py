"""Does the searched GGUF file hold what was measured, and beat llama.cpp's own mix, in llama.cpp?

SmolLM2-135M with permuted channels as files of one size, that of llama.cpp's default mix Q4_K_M;
embedding and norms are the model's in all of them:

- ``auto``: a type for every matrix by `auto`, rounded as the level library does (GPTQ);
- ``mix``: the types of the mix, rounded in the same way, from the same library;
- ``llama_cpp``: the mix as llama.cpp's own quantizer makes it of the dense file, and
  ``llama_cpp_imatrix`` with an importance matrix of the library's text.

llama.cpp runs all files and the dense one on held-out sequences, in the environment that
`make engines` makes: the KL is that of its own logits. Figures: `{file}_mib`; `{file}_kl`;
`{file}_torch_kl` of the candidate in memory, by transformers, and `engine_kl_error`, by how much
the two differ at most, of which `engine_kl_allowed` is 0.01 and 3%; `vs_default_mix_kl_ratio` of
`auto` to ``llama_cpp``, and to the others; tokens per second of a prefill and of generation.

    python benchmarks/gguf_engine.py --calibration wikitext2-valid.txt --heldout wikitext2-test.txt
        --sequences 20 --json gguf_engine.json

Searches, files and comparisons are kept in the results folder: an interrupted run goes on.
``--quick`` does all on a tiny model.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cells import cell
from common import Figure, emit
from healing import quick_setup
from permuted import permuted_copy
from texts import parsed, text_parser
from torch import Tensor, nn

from evocompress import api
from evocompress.core.config import RunConfig
from evocompress.core.progress import Reporter, Silent
from evocompress.core.types import Candidate
from evocompress.evaluation.calibration.sources import token_streams
from evocompress.evaluation.heldout import heldout_quality
from evocompress.export import materialize
from evocompress.export.gguf_architectures import ARCHITECTURES, architecture_of
from evocompress.export.gguf_tensors import gguf_name
from evocompress.export.gguf_writing import GGUF_FILE, TYPES
from evocompress.export.reload import read_checkpoint
from evocompress.pipeline.context import RunContext
from evocompress.pipeline.run_folder import RunFolder
from evocompress.testing.engines import llama_cpp_compare, llama_cpp_quantize, why_missing

MIX = "Q4_K_M"
SEARCHED = ("mix", "auto")
MADE = {"llama_cpp": False, "llama_cpp_imatrix": True}
KINDS = ("q8_0", "q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "q4_1", "q4_0", "q3_k")


@dataclass(frozen=True)
class Setup:
    """What is searched and judged on.

    Attributes:
        folder: Of models, runs, files and cells.
        source: The model, before its channels are permuted.
        calibration: Of all runs.
        types: Of the matrices.
        tokens: Of `auto`.
        probe: Tokens on which the mix is measured.
        heldout: A text file.
        sequences: How many of it judge.
        new_tokens: That are timed.
        repeats: How often.
    """

    folder: Path
    source: str
    calibration: Mapping[str, Any]
    types: Sequence[str]
    tokens: int
    probe: int
    heldout: str
    sequences: int
    new_tokens: int = 32
    repeats: int = 5


def main() -> None:
    """Searches, writes and compares, or reads what an earlier run left."""
    arguments = _arguments()
    missing = why_missing("llama.cpp")
    if missing is not None:
        print(missing)
        emit("gguf_engine", {}, arguments.json)
        return
    with tempfile.TemporaryDirectory() as scratch:
        setup = _quick(Path(scratch)) if arguments.quick else _full(arguments)
        emit("gguf_engine", _figures(setup), arguments.json)


def _arguments() -> argparse.Namespace:
    parser = text_parser(__doc__.splitlines()[0], "gguf_engine", heals=False)
    parser.add_argument("--tokens", type=int, default=220_000, help="of auto")
    return parsed(parser)


def _full(arguments: argparse.Namespace) -> Setup:
    sizes = {"library_sequences": 64, "search_sequences": 64, "heldout_sequences": 1}
    return Setup(
        folder=arguments.results,
        source="demo:smollm2-135m",
        calibration=sizes | {"source": arguments.calibration, "length": 512, "micro_batch": 1},
        types=KINDS,
        tokens=arguments.tokens,
        probe=512,
        heldout=arguments.heldout[0],
        sequences=arguments.sequences,
    )


def _quick(folder: Path) -> Setup:
    """A tiny random model, and few tokens."""
    quick = quick_setup(folder)
    return Setup(
        folder=quick.folder,
        source=str(quick.model["source"]),
        calibration=dict(quick.calibration),
        types=tuple(kind for kind in KINDS if not kind.endswith("k")),
        tokens=4000,
        probe=64,
        heldout=quick.heldout[0],
        sequences=4,
        new_tokens=4,
        repeats=1,
    )


class Comparison:
    """The files of one setup, made when they are asked for."""

    def __init__(self, setup: Setup) -> None:
        """Makes nothing yet but the model."""
        self.setup = setup
        self.model = permuted_copy(setup.source, 0, setup.folder / "models")

    def context(self, name: str) -> RunContext:
        """A finished search: of the mix, or of `auto` within the bytes of the mix."""
        setup, budget = self.setup, 1.0
        search: dict[str, Any] = {"name": "auto", "tokens": setup.tokens}
        if name == "mix":
            search = {"name": "llama_cpp_mix", "mix": MIX, "candidate_tokens": setup.probe}
        else:
            budget = costs(self.context("mix"))["weight_bytes"]
        config = RunConfig.model_validate(
            {
                "name": name,
                "runs": str(setup.folder / "runs"),
                "model": {"source": str(self.model)},
                "calibration": dict(setup.calibration),
                "library": {"path": str(setup.folder / "library")},
                "space": {
                    "bits": {"types": list(setup.types)},
                    "budget": {"weight_bytes": budget},
                    "fits": "gguf",
                },
                "search": search,
            }
        )
        run = RunFolder(config.folder)
        if not (run.path / "winner.json").exists():
            api.search(config, resume=run.path.exists(), reporter=Reporter())
        return RunContext(run.config(), run, Silent())

    def written(self, name: str) -> Path:
        """A candidate's file; the dense model's for ``dense``."""
        out = self.setup.folder / "files" / name
        if not out.exists():
            context = self.context("mix" if name == "dense" else name)
            chosen = Candidate() if name == "dense" else context.folder.read_winner().candidate
            materialize(context.loaded, context.library, chosen, out, format="gguf")
        return out / GGUF_FILE

    def made(self, name: str) -> Path:
        """The file of the mix that llama.cpp itself makes of the dense one."""
        out = self.setup.folder / "files" / f"{name}.gguf"
        if not out.exists():
            context, unfinished = self.context("mix"), out.with_suffix(".unfinished")
            kind = TYPES[str(context.loaded.model.dtype).removeprefix("torch.")].name
            importance = _importance(context) if MADE[name] else None
            dense = self.written("dense")
            llama_cpp_quantize(dense, {MIX: unfinished}, embeddings=kind, importance=importance)
            unfinished.rename(out)
        return out

    def files(self) -> dict[str, Path]:
        """All but the dense one."""
        searched = {name: self.written(name) for name in SEARCHED}
        return searched | {name: self.made(name) for name in MADE}

    def heldout(self) -> Tensor:
        """The sequences that judge (M, S)."""
        context = self.context("mix")
        assert context.loaded.tokenizer is not None
        tokens = next(iter(token_streams(self.setup.heldout, context.loaded.tokenizer)))
        length = context.config.calibration.length
        return tokens[: self.setup.sequences * length].view(-1, length)

    def by_torch(self, name: str) -> dict[str, Any]:
        """The KL of a candidate in memory."""
        context = self.context(name)
        dense, out = context.loaded.model, self.setup.folder / "files" / f"{name}-stock"
        if not out.exists():
            winner = context.folder.read_winner().candidate
            materialize(context.loaded, context.library, winner, out, format="stock")
        model = read_checkpoint(out, dense)
        return {"kl": heldout_quality(dense, {"it": model}, self.heldout())["it"].kl}

    def by_engine(self) -> dict[str, Any]:
        """What llama.cpp says of all files, by their names."""
        files = self.files()
        answer = llama_cpp_compare(
            self.written("dense"),
            list(files.values()),
            self.heldout().tolist(),
            new_tokens=self.setup.new_tokens,
            repeats=self.setup.repeats,
        )
        found = dict(zip(("dense", *files), answer["files"], strict=True))
        return {"version": answer["version"], "files": found}


def costs(context: RunContext) -> dict[str, float]:
    """The costs of a search's winner."""
    space = context.space
    genome = space.genome(context.folder.read_winner().candidate)
    return {name: values.item() for name, values in space.costs(genome[None]).items()}


@torch.no_grad()
def _importance(context: RunContext) -> dict[str, list[float]]:
    """{tensor: the mean square of each input} over the library's sequences."""
    loaded = context.loaded
    name = loaded.model.config.model_type
    known = architecture_of(loaded, alike=name in ARCHITECTURES).name
    sums: dict[str, Tensor] = {}

    def watch(place: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        own = inputs[0].float().flatten(0, -2).square().mean(0)
        sums[place] = sums.get(place, torch.zeros_like(own)) + own

    handles = [
        loaded.model.get_submodule(unit.name).register_forward_pre_hook(
            partial(watch, gguf_name(f"{unit.name}.weight", loaded.model, known))
        )
        for unit in loaded.family.units(loaded.model)
        if unit.kind == "matrix"
    ]
    for sequence in context.calibration.library:
        loaded.model(sequence[None], use_cache=False)
    for handle in handles:
        handle.remove()
    count = len(context.calibration.library)
    return {place: (own / count).tolist() for place, own in sums.items()}


def _figures(setup: Setup) -> dict[str, Figure]:
    """The table."""
    compared, cells = Comparison(setup), setup.folder / "cells"
    engine = cell(cells, "engine", compared.by_engine)
    torch_kl = {
        name: cell(cells, f"torch-{name}", partial(compared.by_torch, name))["kl"]
        for name in SEARCHED
    }
    kl = {name: statistics.fmean(each["kl"]) for name, each in engine["files"].items()}
    apart = {name: abs(kl[name] - torch_kl[name]) for name in SEARCHED}
    worst = max(apart, key=lambda name: apart[name] / (0.01 + 0.03 * torch_kl[name]))
    sizes = {name: path.stat().st_size for name, path in compared.files().items()}
    sizes |= {"dense": compared.written("dense").stat().st_size}
    length = setup.calibration["length"]
    figures: dict[str, Figure] = {"engine": engine["version"]}
    figures |= {f"{name}_mib": size / 2**20 for name, size in sizes.items()}
    figures |= {f"{name}_kl": value for name, value in kl.items() if name != "dense"}
    figures |= {f"{name}_torch_kl": value for name, value in torch_kl.items()}
    figures |= {
        "engine_kl_error": apart[worst],
        "engine_kl_allowed": 0.01 + 0.03 * torch_kl[worst],
        "vs_default_mix_kl_ratio": kl["auto"] / kl["llama_cpp"],
        "vs_imatrix_mix_kl_ratio": kl["auto"] / kl["llama_cpp_imatrix"],
        "vs_library_mix_kl_ratio": kl["auto"] / kl["mix"],
    }
    for key, tokens in (("prefill", length), ("generation", setup.new_tokens)):
        figures |= {
            f"{name}_{key}_tokens_per_second": tokens / statistics.median(each[key])
            for name, each in engine["files"].items()
        }
    return figures


if __name__ == "__main__":
    main()
