"""Does the searched GGUF file hold what was measured, and beat llama.cpp's own mix, in llama.cpp?

SmolLM2-135M with permuted channels as files of one size, that of llama.cpp's default mix Q4_K_M;
embedding and norms are the model's in all of them:

- ``auto``: a type for every matrix by `auto`, rounded as the level library does (GPTQ);
- ``mix``: the types of the mix, rounded in the same way, from the same library;
- ``llama_cpp``: the mix as llama.cpp's own quantizer makes it of the dense file, and
  ``llama_cpp_imatrix`` with an importance matrix of the library's text.

llama.cpp runs all files and the dense one on held-out sequences, in the environment that
`make engines` makes: the KL is that of its own logits. Figures: `{file}_mib`; `file_bytes_error`,
by how much the size of a searched file differs at most from its cost ``file_bytes``; `{file}_kl`;
`{file}_torch_kl` of the candidate in memory, by transformers, and `engine_kl_error`, by how much
the two differ at most, of which `engine_kl_allowed` is 0.01 and 3%; `vs_default_mix_kl_ratio` of
`auto` to ``llama_cpp``, and to the others; tokens per second of a prefill and of generation, and
the same as multiples of the dense file's, which took turns with the file.

    python benchmarks/gguf_engine.py --calibration wikitext2-valid.txt --heldout wikitext2-test.txt
        --sequences 20 --json gguf_engine.json

Searches, files and comparisons are kept in the results folder: an interrupted run goes on.
``--files`` takes some; ``--quick`` does all on a tiny model.
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
from common import Figure, emit, median_ratio
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

WEIGHED = 16
"""Sequences of the importance matrix, whose means of squares hardly change with more."""


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
        files: What is compared.
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
    files: Sequence[str] = (*SEARCHED, *MADE)


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
    every = [*SEARCHED, *MADE]
    parser.add_argument("--files", nargs="+", choices=every, default=every, help="only these")
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
        files=arguments.files,
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
        self._contexts: dict[str, RunContext] = {}

    def context(self, name: str) -> RunContext:
        """A finished search: of the mix, or of `auto` within the bytes of the mix."""
        if name not in self._contexts:
            self._contexts[name] = self._searched(name)
        return self._contexts[name]

    def _searched(self, name: str) -> RunContext:
        setup, budget = self.setup, 1.0
        search: dict[str, Any] = {"name": "auto", "tokens": setup.tokens}
        if name == "mix":
            search = {"name": "llama_cpp_mix", "mix": MIX, "candidate_tokens": setup.probe}
        else:
            budget = costs(self.context("mix"))["file_bytes"]
        config = RunConfig.model_validate(
            {
                "name": name,
                "runs": str(setup.folder / "runs"),
                "model": {"source": str(self.model)},
                "calibration": dict(setup.calibration),
                "library": {"path": str(setup.folder / "library")},
                "space": {
                    "bits": {"types": list(setup.types)},
                    "budget": {"file_bytes": budget},
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
            dense = name == "dense"
            context = self.context("mix" if dense else name)
            library = None if dense else context.library
            chosen = Candidate() if dense else context.folder.read_winner().candidate
            materialize(context.loaded, library, chosen, out, format="gguf")
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

    def file(self, name: str) -> Path:
        """Any of them."""
        return self.made(name) if name in MADE else self.written(name)

    def heldout(self) -> Tensor:
        """The sequences that judge (M, S)."""
        context = self.context("mix")
        assert context.loaded.tokenizer is not None
        tokens = next(iter(token_streams(self.setup.heldout, context.loaded.tokenizer)))
        length = context.config.calibration.length
        return tokens[: self.setup.sequences * length].view(-1, length)

    def in_memory(self, name: str) -> dict[str, Any]:
        """The KL of a candidate by transformers, and what its file would take."""
        context = self.context(name)
        dense, out = context.loaded.model, self.setup.folder / "files" / f"{name}-stock"
        if not out.exists():
            winner = context.folder.read_winner().candidate
            materialize(context.loaded, context.library, winner, out, format="stock")
        model = read_checkpoint(out, dense)
        found = heldout_quality(dense, {"it": model}, self.heldout())["it"]
        return {"kl": found.kl, "file_bytes": costs(context)["file_bytes"]}

    def by_engine(self, name: str) -> dict[str, Any]:
        """What llama.cpp says of a file and of the dense one."""
        answer = llama_cpp_compare(
            self.written("dense"),
            [self.file(name)],
            self.heldout().tolist(),
            new_tokens=self.setup.new_tokens,
            repeats=self.setup.repeats,
        )
        dense, own = answer["files"]
        return {"version": answer["version"], "dense": dense, "own": own}


def costs(context: RunContext) -> dict[str, float]:
    """The costs of a search's winner."""
    space = context.space
    genome = space.genome(context.folder.read_winner().candidate)
    return {name: values.item() for name, values in space.costs(genome[None]).items()}


@torch.no_grad()
def _importance(context: RunContext) -> dict[str, list[float]]:
    """{tensor: the mean square of each input} over some of the library's sequences."""
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
    sequences = context.calibration.library[:WEIGHED]
    for sequence in sequences:
        loaded.model(sequence[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return {place: (own / len(sequences)).tolist() for place, own in sums.items()}


def _figures(setup: Setup) -> dict[str, Figure]:
    """All that there is of the files."""
    compared, cells = Comparison(setup), setup.folder / "cells"
    found = {
        name: cell(cells, f"engine-{name}", partial(compared.by_engine, name))
        for name in setup.files
    }
    searched = {
        name: cell(cells, f"memory-{name}", partial(compared.in_memory, name))
        for name in setup.files
        if name in SEARCHED
    }
    torch_kl = {name: each["kl"] for name, each in searched.items()}
    kl = {name: statistics.fmean(each["own"]["kl"]) for name, each in found.items()}
    figures: dict[str, Figure] = {"engine": next(iter(found.values()))["version"]}
    for name in ("dense", *setup.files):
        figures[f"{name}_mib"] = compared.file(name).stat().st_size / 2**20
    figures |= {f"{name}_kl": value for name, value in kl.items()}
    figures |= {f"{name}_torch_kl": value for name, value in torch_kl.items()}
    if searched:
        sizes = {name: compared.file(name).stat().st_size for name in searched}
        errors = [abs(sizes[name] - each["file_bytes"]) for name, each in searched.items()]
        figures["file_bytes_error"] = max(errors)
    return figures | _errors(kl, torch_kl) | _ratios(kl) | _speeds(setup, found)


def _errors(kl: Mapping[str, float], torch_kl: Mapping[str, float]) -> dict[str, Figure]:
    """How far llama.cpp is from transformers where that is most of what is allowed."""
    if not torch_kl:
        return {}
    allowed = {name: 0.01 + 0.03 * value for name, value in torch_kl.items()}
    apart = {name: abs(kl[name] - value) for name, value in torch_kl.items()}
    worst = max(apart, key=lambda name: apart[name] / allowed[name])
    return {"engine_kl_error": apart[worst], "engine_kl_allowed": allowed[worst]}


def _ratios(kl: Mapping[str, float]) -> dict[str, Figure]:
    """The KL of `auto` as multiples of those of the mix."""
    others = {"default": "llama_cpp", "imatrix": "llama_cpp_imatrix", "library": "mix"}
    return {
        f"vs_{word}_mix_kl_ratio": kl["auto"] / kl[name]
        for word, name in others.items()
        if {"auto", name} <= kl.keys()
    }


def _speeds(setup: Setup, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Figure]:
    """Medians over the repeats."""
    figures: dict[str, Figure] = {}
    sizes = {"prefill": setup.calibration["length"], "generation": setup.new_tokens}
    for name, each in found.items():
        for key, tokens in sizes.items():
            seconds = each["own"][key]
            figures |= {
                f"{name}_{key}_tokens_per_second": tokens / statistics.median(seconds),
                f"{name}_{key}_vs_dense": median_ratio(each["dense"][key], seconds),
            }
    return figures


if __name__ == "__main__":
    main()
