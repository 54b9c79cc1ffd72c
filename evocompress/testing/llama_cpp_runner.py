"""Quantizes and compares GGUF files with llama.cpp. Run by path, where llama-cpp-python is.

    python llama_cpp_runner.py quantize|compare < request.json

It prints its answer as JSON, as its last line. It imports nothing of evocompress, as
`evocompress.testing.engine_runner` does not.
"""

import ctypes
import json
import sys
import time
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "BF16": 30}
"""ggml's numbers of types; llama-cpp-python has no name for the last one."""

ROWS = 64
"""Positions whose logits are compared at once."""


def quantize(request: dict[str, Any]) -> str:
    """Makes files of mixes, as ``llama-quantize`` does.

    The request: ``source``, a file; ``targets``, {llama.cpp's name of a mix: a file};
    ``embeddings``, of `TYPES`, for embedding and head, or null for the mix's own; ``importance``,
    {tensor: a number for each of its inputs} or null.
    """
    import llama_cpp  # type: ignore[import-not-found]

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread = 1
    if request["embeddings"]:
        kind = TYPES[request["embeddings"]]
        parameters.output_tensor_type = parameters.token_embedding_type = kind
    rows = request["importance"] or {}
    values = {name: (ctypes.c_float * len(row))(*row) for name, row in rows.items()}
    entries = [
        llama_cpp.llama_model_imatrix_data(
            name=name.encode(),
            data=ctypes.cast(row, ctypes.POINTER(ctypes.c_float)),
            size=len(row),
        )
        for name, row in values.items()
    ]
    if entries:  # a list that ends with an entry without a name
        last = llama_cpp.llama_model_imatrix_data()
        parameters.imatrix = (llama_cpp.llama_model_imatrix_data * (len(entries) + 1))(
            *entries, last
        )
    source = request["source"]
    for mix, target in request["targets"].items():
        parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{mix}")
        files = source.encode(), target.encode()
        if llama_cpp.llama_model_quantize(*files, ctypes.byref(parameters)):
            raise RuntimeError(f"llama.cpp does not make {mix} of {source}")
    return version("llama-cpp-python")


def compare_files(request: dict[str, Any]) -> dict[str, Any]:
    """Compares files with a reference by their logits, and times them in turns.

    The request: ``reference`` and ``files``; ``caches``, for each of these a type of keys and
    values, of `TYPES`; ``sequences``, lists of token ids; ``new_tokens``, ``repeats`` and
    ``threads`` of the timing. The answer: for each file, and first for the
    reference, ``kl`` of each sequence, the mean over its positions but the last, and the seconds of
    each repeat of a ``prefill`` of the first sequence and of the ``generation`` of new tokens.
    """
    paths = [request["reference"], *request["files"]]
    caches = ["F32", *request["caches"]]
    engines = [_engine(*each, request) for each in zip(paths, caches, strict=True)]
    found: list[dict[str, Any]] = [{"kl": [], "prefill": [], "generation": []} for _ in paths]
    for sequence in request["sequences"]:
        reference = _logits(engines[0], sequence)
        found[0]["kl"].append(0.0)
        for engine, each in zip(engines[1:], found[1:], strict=True):
            each["kl"].append(_divergence(reference, _logits(engine, sequence)))
    for _ in range(request["repeats"]):
        for engine, each in zip(engines, found, strict=True):
            each["prefill"].append(_seconds(engine, request["sequences"][0], 0))
            each["generation"].append(_seconds(engine, [], request["new_tokens"]))
    return {"version": version("llama-cpp-python"), "files": found}


def _engine(path: str, cache: str, request: dict[str, Any]) -> Any:
    """A file's model with float32 activations between matrices, and a type of caches."""
    from llama_cpp import Llama

    return Llama(
        path,
        n_ctx=max(request["new_tokens"], *map(len, request["sequences"])) + 8,
        n_threads=request["threads"],
        n_threads_batch=request["threads"],
        type_k=TYPES[cache],
        type_v=TYPES[cache],
        flash_attn=cache != "F32",
        logits_all=True,
        verbose=False,
    )


def _logits(engine: Any, sequence: list[int]) -> NDArray[np.float32]:
    """Of every position (S, V)."""
    engine.reset()
    engine.eval(sequence)
    return np.array(engine.scores[: len(sequence)])


def _divergence(reference: NDArray[np.float32], logits: NDArray[np.float32]) -> float:
    """The mean KL of the reference to other logits (S, V), without the last position."""
    total = 0.0
    for start in range(0, len(reference) - 1, ROWS):
        rows = slice(start, min(start + ROWS, len(reference) - 1))
        first, second = _log_probabilities(reference[rows]), _log_probabilities(logits[rows])
        total += float((np.exp(first) * (first - second)).sum())
    return total / (len(reference) - 1)


def _log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    found: NDArray[np.float64] = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return found


def _seconds(engine: Any, prompt: list[int], new_tokens: int) -> float:
    """Of reading a prompt at once and as many single tokens after it."""
    engine.reset()
    start = time.perf_counter()
    if prompt:
        engine.eval(prompt)
    for token in range(1, new_tokens + 1):
        engine.eval([token])
    return time.perf_counter() - start


COMMANDS = {"quantize": quantize, "compare": compare_files}

if __name__ == "__main__":
    print(json.dumps(COMMANDS[sys.argv[1]](json.load(sys.stdin))))
