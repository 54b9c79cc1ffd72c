"""A speed test of some seconds: products, a search of a tiny model, and the disk."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from evocompress.core.config import RunConfig
from evocompress.core.config_file import validate
from evocompress.core.environment import describe
from evocompress.models.checkpoints import quiet_transformers
from evocompress.pipeline.context import Local
from evocompress.pipeline.loop import Progress
from evocompress.pipeline.planning.measure import DeviceClock, products_per_second
from evocompress.pipeline.stages import search

ROWS, SIDE = 256, 1024
"""Of the product: as `models.cpu_dtypes` times it."""

ROWS_ON_GPU, SIDE_ON_GPU = 4096, 4096

WRITTEN = 64 * 2**20
VOCABULARY = 256
SEQUENCES, LENGTH = 12, 32
STAGES = {"survivors": [4, 1], "stage_tokens": [SEQUENCES * LENGTH // 4, SEQUENCES * LENGTH]}


@dataclass(frozen=True)
class Speed:
    """A figure of the speed test, such as ``float32 products`` of a device in GFLOP/s."""

    what: str
    value: float
    unit: str


def product_speeds(device: torch.device) -> Iterator[Speed]:
    """Matrix products of a device in float32 and bfloat16."""
    clock = DeviceClock(device)
    rows, side = (ROWS, SIDE) if device.type == "cpu" else (ROWS_ON_GPU, SIDE_ON_GPU)
    for kind in (torch.float32, torch.bfloat16):
        name = str(kind).removeprefix("torch.")
        found = products_per_second(clock, rows, side, side, kind)
        yield Speed(f"{name} products, {describe(device)}", found / 1e9, "GFLOP/s")


def search_speed(device: str) -> Iterator[Speed]:
    """Searches zeros for a tiny random model, as any run does, and counts evaluated tokens.

    Raises:
        EvoCompressError: It fails, so that no other search would work.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        config = _tiny_run(folder, device)
        told: list[tuple[float, Progress]] = []
        search(config, Local(), listener=lambda now: told.append((time.perf_counter(), now)))
    (begun, _), (ended, last) = told[0], told[-1]
    tokens = last.step.computed if last.step else 0
    yield Speed("search of a tiny model", tokens / (ended - begun), "tokens/s")


def disk_speeds(folder: Path) -> Iterator[Speed]:
    """Writing a file until it is on the disk, and reading it back past the memory's copy."""
    content = os.urandom(WRITTEN)
    with TemporaryFile(dir=folder) as file:
        start = time.perf_counter()
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        yield Speed(f"writing in {folder}", _megabytes(start), "MB/s")
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        start = time.perf_counter()
        file.read()
        yield Speed(f"reading in {folder}", _megabytes(start), "MB/s")


def _megabytes(start: float) -> float:
    """MB/s of the file, since a moment."""
    return WRITTEN / 1e6 / (time.perf_counter() - start)


def _tiny_run(folder: Path, device: str) -> RunConfig:
    """A run on a random model and random tokens, which are written into a folder."""
    settings = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        tie_word_embeddings=True,
    )
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (2 * SEQUENCES, LENGTH), generator=generator)
    (folder / "tokens").mkdir()
    save_file({"tokens": tokens}, folder / "tokens" / "tokens.safetensors")
    with quiet_transformers():
        LlamaForCausalLM(settings).save_pretrained(folder / "model")
    numbers = models.WordLevel({str(token): token for token in range(VOCABULARY)}, unk_token="0")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(numbers), eos_token="0")
    tokenizer.save_pretrained(folder / "model")
    run = {
        "name": "tiny",
        "runs": str(folder / "runs"),
        "model": {"source": str(folder / "model"), "device": device},
        "calibration": {
            **{"source": str(folder / "tokens"), "length": LENGTH, "micro_batch": SEQUENCES // 4},
            **{"search_sequences": SEQUENCES, "library_sequences": 3, "heldout_sequences": 3},
        },
        "space": {"sparsity": {"target": 0.5, "levels": 1}},
        "library": {"criterion": "magnitude"},
        "search": {"name": "evopress", "generations": 8, "offspring": 8} | STAGES,
    }
    return validate(RunConfig, run, "the tiny run")
