"""Dense models and checkpoints of format `hf` as one graph of torch.compile.

A random Llama, dense and written as `hf` with heads, channels and sub-layers missing, runs in turns
as it is and compiled with ``fullgraph=True``, on one batch of fixed shape.

Figures: `dense_ms`, `dense_compiled_ms`, `hf_ms`, `hf_compiled_ms`, medians; `dense_speedup` and
`hf_speedup`, by what compiling is faster; `hf_vs_dense` and `hf_vs_dense_compiled`, seconds of the
checkpoint over those of the dense model; `dense_compile_s`, `hf_compile_s`, the first call;
`max_difference`, of the checkpoint's logits, compiled and not.

    python benchmarks/compiled.py --json compiled.json

``--quick`` takes a tiny model and makes no machine code of its graphs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from common import Figure, clock, emit, interleaved, median_ratio
from transformers import PreTrainedModel

from evocompress.export import materialize
from evocompress.models.loading import LoadedModel
from evocompress.testing.formats import candidate_of, reload, uneven
from evocompress.testing.plain_library import PlainLibrary
from evocompress.testing.tiny import tiny_loaded


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    hidden = 64 if arguments.quick else arguments.hidden
    repeats = 2 if arguments.quick else arguments.repeats
    backend = "eager" if arguments.quick else "inductor"
    loaded = tiny_loaded("llama", layers=4, hidden=hidden)
    ids = torch.arange(arguments.tokens)[None] % 256
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        models = {"dense": loaded.model, "hf": _written(loaded, Path(scratch) / "hf")}
        emit("compiled", _figures(models, ids, repeats, backend), arguments.json)


def _written(loaded: LoadedModel, out: Path) -> PreTrainedModel:
    """The checkpoint, read back."""
    candidate = candidate_of(loaded, uneven(loaded))
    materialize(loaded, PlainLibrary(loaded), candidate, out, format="hf")
    return reload(out).requires_grad_(False)


def _figures(
    models: dict[str, PreTrainedModel], ids: torch.Tensor, repeats: int, backend: str
) -> dict[str, Figure]:
    calls: dict[str, Callable[[], object]] = {}
    figures: dict[str, Figure] = {}
    for name, model in models.items():
        compiled = torch.compile(model, fullgraph=True, dynamic=False, backend=backend)
        begin = clock()
        logits = compiled(ids, use_cache=False).logits
        figures[f"{name}_compile_s"] = clock() - begin
        calls[name] = partial(model, ids, use_cache=False)
        calls[f"{name}_compiled"] = partial(compiled, ids, use_cache=False)
    difference = logits - models["hf"](ids, use_cache=False).logits
    seconds = interleaved(calls, repeats)
    figures |= {f"{name}_ms": 1000 * statistics.median(own) for name, own in seconds.items()}
    for name in models:
        figures[f"{name}_speedup"] = median_ratio(seconds[name], seconds[f"{name}_compiled"])
    for ending in ("", "_compiled"):
        ratio = median_ratio(seconds[f"hf{ending}"], seconds[f"dense{ending}"])
        figures[f"hf_vs_dense{ending}"] = ratio
    return figures | {"max_difference": float(difference.abs().max())}


if __name__ == "__main__":
    main()
