"""Text that the model writes itself, so that calibration needs no data set.

The model's own samples as calibration data: LLM-QAT (2305.17888), which also starts each
sequence from a random token of the vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from transformers import PreTrainedModel
from xxhash import xxh3_128_hexdigest

from evocompress.core.errors import DataError, one_line
from evocompress.core.files import CHECKSUM, cache_folder, naming_disk_errors, replacing
from evocompress.core.leftovers import clear_leftovers
from evocompress.core.regular import check_regular
from evocompress.evaluation.calibration.special import surroundings, vocabulary_size
from evocompress.models.loading import LoadedModel

LOG = logging.getLogger("evocompress")


@dataclass(frozen=True)
class Writing:
    """How text is sampled; a change of any field gives other text.

    Attributes:
        sequences: How many.
        length: Tokens of each.
        seed: Of the sampling.
        batch: Largest number of sequences sampled at once.
        top_k: Likeliest tokens among which each one is drawn, at temperature 1.
    """

    sequences: int
    length: int
    seed: int
    batch: int = 128
    top_k: int = 50


def self_written(
    loaded: LoadedModel,
    writing: Writing,
    cache: Path | None = None,
    *,
    opening: Tensor | None = None,
) -> Tensor:
    """The text, out of the cache where it was written before.

    Every sequence begins with the tokens (n,) of `opening`, by default those that the tokenizer
    puts before every text; the cache is by default a folder in the user's.

    Returns:
        Token ids (sequences, length), int64, on the CPU, without special tokens but for
        `opening`. A damaged file of the cache is written anew.

    Raises:
        RunError: The cache cannot be written.
        DataError: The model cannot write.
    """
    folder = cache or cache_folder() / "self-text"
    usual = surroundings(loaded, "auto")[0]
    opening = usual if opening is None else opening
    # Texts that begin as usual keep the names that they had before there was a choice.
    other = None if torch.equal(opening, usual) else opening.tolist()
    path = folder / f"{_key(loaded, writing, other)}.safetensors"
    kept = _read(path, writing, loaded) if path.is_file() else None
    if kept is None:
        folder.mkdir(parents=True, exist_ok=True)
        clear_leftovers(folder)
        kept = write(loaded, writing, opening)
        _save(kept, path)
    return kept


@torch.inference_mode()
def write(loaded: LoadedModel, writing: Writing, opening: Tensor | None = None) -> Tensor:
    """Sample the text: token ids (sequences, length) on the CPU; see `self_written`.

    This is a loop of its own because generate() takes no generator, and goes over the whole
    vocabulary several times for each token, which made it a third slower on two cores.
    """
    generator = torch.Generator(loaded.model.device).manual_seed(writing.seed)
    allowed = _allowed_tokens(loaded)
    if opening is None:
        opening = surroundings(loaded, "auto")[0]
    batches = ceil(writing.sequences / writing.batch)
    # Small batches are hardly faster than large ones, so the sequences are shared out evenly.
    rows = ceil(writing.sequences / batches)
    texts: list[Tensor] = []
    with _decoding_kernel(loaded.model):
        for _ in range(batches):
            first = torch.multinomial(allowed.float().expand(rows, -1), 1, generator=generator)
            start = torch.cat([opening.to(first).expand(rows, -1), first], 1)
            texts.append(_continue(loaded.model, start, allowed, writing, generator))
    return torch.cat(texts)[: writing.sequences].cpu()


@contextmanager
def _decoding_kernel(model: PreTrainedModel) -> Iterator[None]:
    """On a CPU plain matrix products: for one query they take half the time of the fused kernel."""
    before = model.config._attn_implementation
    if model.device.type == "cpu":
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _continue(
    model: PreTrainedModel,
    start: Tensor,
    allowed: Tensor,
    writing: Writing,
    generator: torch.Generator,
) -> Tensor:
    """Sample on from `start` (batch, n) up to (batch, length), drawing `allowed` tokens only."""
    parts, past = [start], None
    for _ in range(writing.length - start.shape[1]):
        output = model(parts[-1], past_key_values=past, use_cache=True)
        past = output.past_key_values
        logits = output.logits[:, -1].float().masked_fill_(~allowed, float("-inf"))
        likeliest = logits.topk(min(writing.top_k, logits.shape[-1]))
        if not likeliest.values[:, 0].isfinite().all():
            raise DataError(
                "the model writes no text, since its outputs are not finite numbers: its weights "
                "are damaged, or model.dtype is too narrow for them"
            )
        drawn = torch.multinomial(likeliest.values.softmax(-1), 1, generator=generator)
        parts.append(likeliest.indices.gather(1, drawn))
    return torch.cat(parts, 1)


def _allowed_tokens(loaded: LoadedModel) -> Tensor:
    """Which tokens may be drawn (V,): all but special ones, so that no text ends early."""
    assert loaded.tokenizer is not None
    vocabulary = loaded.model.get_output_embeddings().weight.shape[0]
    allowed = torch.zeros(vocabulary, dtype=torch.bool)
    # A vocabulary padded to a round number has rows that the tokenizer does not know; and a
    # tokenizer may have tokens, special ones mostly, that the model has no row for.
    allowed[: min(len(loaded.tokenizer), vocabulary_size(loaded))] = True
    allowed[[token for token in loaded.tokenizer.all_special_ids if token < vocabulary]] = False
    if not allowed.any():
        raise DataError(
            f"{loaded.source} has {vocabulary} tokens, and its tokenizer none that is not special: "
            "it writes no text, give calibration.source a text file"
        )
    return allowed.to(loaded.model.device)


def _key(loaded: LoadedModel, writing: Writing, opening: list[int] | None) -> str:
    """Name of the text in the cache: who wrote it, how, and its opening where not the usual."""
    facts = [loaded.fingerprint, asdict(writing)]
    text = json.dumps(facts if opening is None else [*facts, opening], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _save(tokens: Tensor, path: Path) -> None:
    stored = tokens.int().contiguous()
    content = save({"tokens": stored}, metadata={CHECKSUM: _checksum(stored)})
    with naming_disk_errors(path), replacing(path) as temporary:
        temporary.write_bytes(content)


def _read(path: Path, writing: Writing, loaded: LoadedModel) -> Tensor | None:
    """The text in a file of the cache; ``None``, with a word, where it is damaged."""
    try:
        check_regular(path)
        with safe_open(path, framework="pt") as file:
            tokens: Tensor = file.get_tensor("tokens")
            checksum = (file.metadata() or {}).get(CHECKSUM)
    except (OSError, SafetensorError) as error:
        LOG.warning("%s is damaged (%s): the text is written anew", path, one_line(error))
        return None
    # Older versions wrote no checksum.
    whole = checksum in (None, _checksum(tokens)) and tokens.dtype == torch.int32
    rows = loaded.model.get_output_embeddings().weight.shape[0]
    if whole and tuple(tokens.shape) == (writing.sequences, writing.length):
        found = tokens.long()
        if int(found.min()) >= 0 and int(found.max()) < rows:
            return found
    LOG.warning("%s is damaged: the text is written anew", path)
    return None


def _checksum(tokens: Tensor) -> str:
    return xxh3_128_hexdigest(tokens.numpy().tobytes())
