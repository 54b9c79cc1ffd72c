"""What every checkpoint format must fulfil, checked on tiny random models.

`FormatContract` is the base of a test class; give it the fixtures ``format`` (a name in
`evocompress.export.FORMATS`) and ``loaded`` (a model of four blocks). The reference is the
candidate in memory, put there by `evocompress.compression.live_model.LiveModel`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import evocompress.hf  # noqa: F401
from evocompress.compression.live_model import LiveModel
from evocompress.core.canonical import canonical
from evocompress.core.errors import ExportError
from evocompress.core.types import DROP, Candidate, Level
from evocompress.export import FORMATS, choose_format, materialize, read_record
from evocompress.export.gguf_writing import GGUF_FILE
from evocompress.export.weights import compressed_state
from evocompress.models.loading import LoadedModel, fingerprint
from evocompress.models.tasks import CAUSAL, Task
from evocompress.testing.gguf_reference import READ, GgufReference
from evocompress.testing.plain_library import PlainLibrary
from evocompress.testing.probes import answer, random_batch, random_ids

NEW_TOKENS = 12
ROUNDING = 1e-4
"""By how much logits may differ: zeros in a sum change the order in which it is taken."""

LevelsByEnd = dict[str, Level]
"""By the end of the unit names, such as ``2.mlp``."""


def candidate_of(loaded: LoadedModel, levels: Mapping[str, Level]) -> Candidate:
    """The canonical candidate of some levels, without widths of what cannot be narrowed."""
    path, units = loaded.family.layers_path, loaded.family.units(loaded.model)
    fixed = {unit.name for unit in units if not unit.narrowable}
    named = {f"{path}.{name}": level for name, level in levels.items()}
    kept = {name: level for name, level in named.items() if not (level.narrow and name in fixed)}
    return canonical(kept, units)


def heads(loaded: LoadedModel) -> list[Level]:
    """All narrow levels of an attention: one head first, one query head less than dense last."""
    architecture = loaded.family.architecture(loaded.model)
    pairs = zip(architecture.heads, architecture.kv_heads, strict=True)
    # A model may have none; then any level stands for those that it lacks.
    count, groups = next(filter(all, pairs), (4, 2))
    within = count // groups
    every = [(g, q) for g in range(1, groups + 1) for q in range(1, within + 1)]
    return [Level(kv_groups=g, group_heads=q) for g, q in every[:-1]]


def needing_bias(loaded: LoadedModel, level: Level) -> Level:
    """The level with a bias, where the output matrix has none of its own and is no expert's."""
    family = loaded.family
    if family.mixture is not None or not family.mlp.coupled:
        return level
    own = family.blocks(loaded.model)[0].get_submodule(family.output("mlp").path).bias
    return replace(level, bias=own is None)


def with_zeros(loaded: LoadedModel, levels: Mapping[str, Level]) -> LevelsByEnd:
    """The levels, and a third of each matrix zero."""
    prefix = f"{loaded.family.layers_path}."
    matrices = [unit for unit in loaded.family.units(loaded.model) if unit.kind == "matrix"]
    zeros = {m.name.removeprefix(prefix): Level(zeros=m.numel // 3) for m in matrices}
    return zeros | dict(levels)


def uneven(loaded: LoadedModel) -> LevelsByEnd:
    """Widths that differ in each of four blocks, block 1 and another attention dropped."""
    return {
        "0.attention": heads(loaded)[-1],
        "0.mlp": Level(channels=100),
        "1": DROP,
        "2.attention": heads(loaded)[0],
        "2.mlp": Level(channels=40),
        "3.attention": DROP,
    }


def with_bias(loaded: LoadedModel) -> LevelsByEnd:
    """`uneven`, and biases for what was cut in block 2."""
    levels = uneven(loaded)
    return levels | {n: needing_bias(loaded, levels[n]) for n in ("2.attention", "2.mlp")}


def even_channels(_: LoadedModel) -> LevelsByEnd:
    """The same number of channels in all blocks but block 1, which is dropped."""
    return {f"{i}.mlp": Level(channels=72) for i in (0, 2, 3)} | {"1": DROP}


def even_heads(loaded: LoadedModel) -> LevelsByEnd:
    """The same number of heads in all blocks."""
    return {f"{i}.attention": heads(loaded)[1] for i in range(4)}


CASES: dict[str, Callable[[LoadedModel], LevelsByEnd]] = {
    "dense": lambda _: {},
    "sparse": lambda loaded: with_zeros(loaded, {"1": DROP}),
    "merged": lambda _: {"0": Level(merge=2), "1": DROP, "2": DROP},
    "lacking": lambda loaded: with_zeros(loaded, {"0.attention": DROP, "2.mlp": DROP}),
    "channels": lambda loaded: with_zeros(loaded, even_channels(loaded)),
    "heads": lambda loaded: with_zeros(loaded, even_heads(loaded)),
    "uneven": lambda loaded: with_zeros(loaded, uneven(loaded)),
    "biased": with_bias,
}
"""Candidates of every kind, the hardest last."""


def greedy(model: Any, ids: Tensor, *, cache: bool) -> Tensor:
    """The tokens `ids` (B, S) and the most likely ones after them."""
    tokens: Tensor = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        use_cache=cache,
        eos_token_id=None,
        pad_token_id=0,
    )
    return tokens


def in_memory(loaded: LoadedModel, candidate: Candidate, batch: Tensor | None = None) -> Tensor:
    """The outputs of the live model, by default on the family's random batch."""
    if batch is None:
        batch = random_batch(loaded.family, loaded.model)
    with LiveModel(loaded, PlainLibrary(loaded)) as live:
        live.apply(candidate)
        return answer(loaded.family, loaded.model, batch)


def greedy_in_memory(loaded: LoadedModel, candidate: Candidate, ids: Tensor) -> Tensor:
    """Greedy tokens of the live model, whose caches know of no dropped attention."""
    with LiveModel(loaded, PlainLibrary(loaded)) as live:
        live.apply(candidate)
        return greedy(loaded.model, ids, cache=False)


def reload(folder: Path, task: Task = CAUSAL) -> PreTrainedModel:
    """The model in a folder, for which nothing may be missing or left over."""
    model, info = task.auto.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert isinstance(model, PreTrainedModel)
    return model


def assert_written(folder: Path, loaded: LoadedModel, candidate: Candidate) -> None:
    """A checkpoint of any format computes what the candidate does in memory."""
    if (folder / GGUF_FILE).exists():
        assert_gguf_same(folder / GGUF_FILE, loaded, candidate)
    else:
        assert_same(reload(folder, loaded.family.task), loaded, candidate)


def assert_gguf_same(file: Path, loaded: LoadedModel, candidate: Candidate) -> None:
    """A GGUF file, read by another program, gives the candidate's logits and greedy tokens.

    Of architectures that are not read here it is seen that all parameters of the blocks are there.
    """
    model = GgufReference(file)
    if model.architecture not in READ:
        state = compressed_state(loaded, PlainLibrary(loaded), candidate)
        built = FORMATS["stock"].build(loaded, state, candidate)
        params = sum(p.numel() for p in loaded.family.blocks(built).parameters())
        assert read_record(file.parent).measured["body_params"] == params
        return
    ids = random_ids()
    logits, tokens = in_memory(loaded, candidate, ids), greedy_in_memory(loaded, candidate, ids)
    for row, sequence in enumerate(ids.numpy()):
        np.testing.assert_allclose(model.logits(sequence), logits[row], rtol=0, atol=ROUNDING)
    # One pass over the whole continuation: each of its tokens is the best after those before it.
    best = model.logits(tokens[0, :-1].numpy()).argmax(axis=-1)
    assert (best[-NEW_TOKENS:] == tokens[0, -NEW_TOKENS:].numpy()).all()


def assert_same(model: PreTrainedModel, loaded: LoadedModel, candidate: Candidate) -> None:
    """The model computes what the candidate does in memory, with a cache and without."""
    batch = random_batch(loaded.family, loaded.model)
    outputs, expected = answer(loaded.family, model, batch), in_memory(loaded, candidate)
    torch.testing.assert_close(outputs, expected, rtol=0, atol=ROUNDING)
    if loaded.family.task.causal:
        tokens = greedy_in_memory(loaded, candidate, batch)
        for cache in (False, True):
            assert torch.equal(greedy(model, batch, cache=cache), tokens)


class FormatContract:
    """The checks; subclasses are collected by pytest.

    Examples:
        >>> class TestFormat(FormatContract):
        ...     pass
    """

    def written(self, loaded: LoadedModel, able: list[str]) -> list[str]:
        """Which of the cases that a format can write are written; subclasses may choose some."""
        return able

    def test_it_writes_the_candidate_or_says_who_can(
        self, format: str, loaded: LoadedModel, tmp_path: Path
    ) -> None:
        """What is read back is the candidate; what is refused others really can write."""
        before = fingerprint(loaded.model)
        candidates = {case: candidate_of(loaded, levels(loaded)) for case, levels in CASES.items()}
        told = {case: FORMATS[format].obstacle(loaded, c) for case, c in candidates.items()}
        for case in self.written(loaded, [case for case in CASES if told[case] is None]):
            self.check_written(format, loaded, candidates[case], tmp_path / case)
        for case, obstacle in told.items():
            if obstacle is not None:
                self.check_refused(format, loaded, candidates[case], obstacle)
        assert fingerprint(loaded.model) == before

    def check_written(
        self, format: str, loaded: LoadedModel, candidate: Candidate, out: Path
    ) -> None:
        """The checkpoint holds the candidate and its record."""
        materialize(loaded, PlainLibrary(loaded), candidate, out, format=format)
        record = read_record(out)
        assert (record.id, record.format) == (candidate.id, format)
        assert_written(out, loaded, candidate)

    def check_refused(
        self, format: str, loaded: LoadedModel, candidate: Candidate, obstacle: str
    ) -> None:
        """One line names the format, a unit or the kind of model, and all formats that can."""
        with pytest.raises(ExportError) as caught:
            choose_format(loaded, candidate, format)
        text = str(caught.value)
        assert "\n" not in text
        assert text.startswith(f"format '{format}' {obstacle}: ")
        units = (*candidate.by_name, f"{loaded.family.model_type} model")
        assert any(name in obstacle for name in units)
        told = [name for name in FORMATS if not hasattr(FORMATS[name], "like")]
        able = {name for name in told if FORMATS[name].obstacle(loaded, candidate) is None}
        assert {name for name in FORMATS if f"'{name}'" in text.rsplit(": ", 1)[1]} == able
