"""Checkpoints run by vLLM and llama.cpp; `make engines` installs them.

They generate the tokens of the candidate in memory, in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from evocompress.compression.live_model import LiveModel
from evocompress.core.errors import RunError
from evocompress.core.types import DROP, Candidate, Level
from evocompress.export import FORMATS, PROGRAMS, materialize
from evocompress.export.gguf_architectures import UNEVEN
from evocompress.export.gguf_tokenizer import KNOWN
from evocompress.export.llama_like import LLAMA_LIKE
from evocompress.export.programs import check_version
from evocompress.models.loading import LoadedModel
from evocompress.testing.byte_tokenizers import TEXTS, trained_tokenizer
from evocompress.testing.engines import (
    Generated,
    first_difference,
    generate,
    generate_from_each,
    greedy_tokens,
    why_missing,
)
from evocompress.testing.formats import CASES, LevelsByEnd, candidate_of
from evocompress.testing.gguf_reference import GgufReference
from evocompress.testing.gguf_types import (
    ALONE,
    VARIANTS,
    WHOLES,
    every_gguf_levels,
    gguf_levels,
    gguf_loaded,
    uneven_gguf_levels,
)
from evocompress.testing.piece_tokenizers import KINDS as PIECES
from evocompress.testing.piece_tokenizers import piece_tokenizer
from evocompress.testing.plain_library import PlainLibrary
from evocompress.testing.seeing import TEXT, random_image, seeing_model, tokens_after_image
from evocompress.testing.tiny import windowless

pytestmark = pytest.mark.engines

PROMPTS = [
    torch.randint(1, 240, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    for length in (3, 5, 8, 13, 17, 21, 27, 32)
]


def without_mlps(_: LoadedModel) -> LevelsByEnd:
    """MLPs dropped where attention stays, one before a block without attention and one last."""
    return {"1.mlp": DROP, "2.attention": DROP, "3.mlp": DROP, "0.mlp": Level(channels=96)}


LEVELS: dict[str, Callable[[LoadedModel], LevelsByEnd]] = {
    "uneven": CASES["uneven"],
    "biased": CASES["biased"],
    "lacking": CASES["lacking"],
    "without_mlps": without_mlps,
}

FOLDED = [name for name in FORMATS["folded"].programs["vllm"].families if name != "llava"]

InVllm = tuple[LoadedModel, Candidate, Generated | RunError]

RUNS = [
    *(("llama.cpp", "gguf", "llama", case) for case in ("uneven", "biased", "without_mlps")),
    *(("llama.cpp", "gguf", family, "uneven") for family in ("mistral", "qwen2")),
    *(("vllm", "folded", "llama", case) for case in ("uneven", "lacking", "without_mlps")),
    ("vllm", "folded", "qwen2_moe", "lacking"),
    *(("vllm", "deci", "llama", case) for case in ("uneven", "biased", "without_mlps")),
    *(("vllm", "deci", family, "uneven") for family in ("mistral", "qwen2")),
]


@pytest.fixture(autouse=True)
def there(request: pytest.FixtureRequest) -> None:
    reason = why_missing(request.getfixturevalue("engine"))
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.parametrize(("engine", "format", "family", "case"), RUNS)
def test_greedy_tokens_are_those_of_transformers(
    engine: str, format: str, family: str, case: str, tmp_path: Path
) -> None:
    loaded = windowless(family, layers=4, hidden=256)
    library = PlainLibrary(loaded)
    candidate = candidate_of(loaded, LEVELS[case](loaded))
    out = materialize(loaded, library, candidate, tmp_path / "out", format=format)
    found = generate(engine, out, PROMPTS)
    assert format in PROGRAMS[engine].formats and check_version(engine, found.version) == ""
    assert_continued(loaded, candidate, found.tokens)


@pytest.mark.parametrize("engine", ["llama.cpp"])
@pytest.mark.parametrize("model_type", [*ALONE, *VARIANTS])
def test_llama_cpp_computes_types_of_their_own(
    engine: str, model_type: str, tmp_path: Path
) -> None:
    loaded = gguf_loaded(model_type)
    candidate = candidate_of(loaded, gguf_levels(loaded))
    out = materialize(loaded, PlainLibrary(loaded), candidate, tmp_path / "out", format="gguf")
    assert_continued(loaded, candidate, generate(engine, out, PROMPTS, new_tokens=8).tokens)


@pytest.mark.parametrize("engine", ["llama.cpp"])
@pytest.mark.parametrize(
    "model_type",
    [
        *(name for name in UNEVEN if name not in LLAMA_LIKE),
        *(name for name in VARIANTS if name.startswith("nemotron_h")),
    ],
)
def test_llama_cpp_computes_layers_that_differ(
    engine: str, model_type: str, tmp_path: Path
) -> None:
    loaded = gguf_loaded(model_type)
    candidate = candidate_of(loaded, uneven_gguf_levels(loaded))
    out = materialize(loaded, PlainLibrary(loaded), candidate, tmp_path / "out", format="gguf")
    assert_continued(loaded, candidate, generate(engine, out, PROMPTS, new_tokens=8).tokens)


READING = ("gemma4_unified", "kimi_k25")
"""Types whose class reads tokens that stand for images as padding, also where there are none.

A random model writes some. The files are those of the language models alone, which are run:
tests/export/test_gguf_wholes.py.
"""


@pytest.mark.parametrize("engine", ["llama.cpp"])
@pytest.mark.parametrize("model_type", [name for name in WHOLES if name not in READING])
def test_llama_cpp_computes_the_language_model_within_others(
    engine: str, model_type: str, tmp_path: Path
) -> None:
    loaded = gguf_loaded(model_type)
    for case, levels in enumerate(every_gguf_levels(loaded)):
        candidate, out = candidate_of(loaded, levels), tmp_path / str(case)
        materialize(loaded, PlainLibrary(loaded), candidate, out, format="gguf")
        assert_continued(loaded, candidate, generate(engine, out, PROMPTS, new_tokens=8).tokens)


MIXTURE: LevelsByEnd = {"0.experts.3": DROP, "1.experts.0": DROP, "2.experts.2": DROP}
MIXTURE |= {"1.attention": Level(kv_groups=1, group_heads=3)}


@pytest.mark.parametrize("engine", ["llama.cpp"])
@pytest.mark.parametrize("gone", ["nothing", "0.mlp", "1.attention", "2.mlp"])
def test_llama_cpp_computes_experts_beside_a_dense_mlp(
    engine: str, gone: str, tmp_path: Path
) -> None:
    """Gemma 4's: fewer of them, all narrower, and none in a layer whose MLP is missing."""
    loaded = gguf_loaded("gemma4_text mixture")
    levels = MIXTURE | {f"{block}.mlp": Level(channels=20) for block in range(3)} | {gone: DROP}
    block, _, sublayer = gone.partition(".")
    if not sublayer:
        del levels[gone]
    elif sublayer == "mlp":
        levels = {n: own for n, own in levels.items() if not n.startswith(f"{block}.experts")}
    candidate = candidate_of(loaded, levels)
    out = materialize(loaded, PlainLibrary(loaded), candidate, tmp_path / "out", format="gguf")
    assert_continued(loaded, candidate, generate(engine, out, PROMPTS, new_tokens=8).tokens)


@pytest.fixture(scope="module")
def folded_in_vllm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, InVllm]:
    """A model of every type that `folded` names for vLLM, and what one process makes of them."""
    reason = why_missing("vllm")
    if reason is not None:
        pytest.skip(reason)
    written = {}
    for family in FOLDED:
        loaded = windowless(family, layers=4, hidden=256)
        candidate = candidate_of(loaded, folded_levels(loaded))
        out = tmp_path_factory.mktemp("folded") / family
        materialize(loaded, PlainLibrary(loaded), candidate, out, format="folded")
        written[family] = loaded, candidate, out
    found = generate_from_each("vllm", [out for *_, out in written.values()], PROMPTS)
    return {family: (*written[family][:2], one) for family, one in zip(written, found, strict=True)}


def folded_levels(loaded: LoadedModel) -> LevelsByEnd:
    """A block less, an MLP less, fewer heads in one layer and, but for experts, fewer channels."""
    levels = {"2": DROP, "3.mlp": DROP, "1.attention": Level(kv_groups=1, group_heads=2)}
    return levels | ({} if loaded.family.mixture else {"0.mlp": Level(channels=96)})


@pytest.mark.parametrize("engine", ["vllm"])
@pytest.mark.parametrize("family", FOLDED)
def test_vllm_computes_every_type_that_is_named(
    engine: str, family: str, folded_in_vllm: dict[str, InVllm]
) -> None:
    loaded, candidate, found = folded_in_vllm[family]
    if isinstance(found, RunError):
        raise found
    assert_continued(loaded, candidate, found.tokens)


@pytest.mark.parametrize("engine", ["vllm"])
def test_vllm_computes_a_model_that_reads_images(engine: str, tmp_path: Path) -> None:
    loaded = seeing_model(tmp_path / "dense")
    candidate = candidate_of(loaded, folded_levels(loaded))
    out = materialize(loaded, PlainLibrary(loaded), candidate, tmp_path / "out", format="folded")
    image = random_image(tmp_path / "image.png")
    found = generate(engine, out, PROMPTS, new_tokens=12, images=[(TEXT, image)])
    assert_continued(loaded, candidate, found.tokens)
    with LiveModel(loaded, PlainLibrary(loaded)) as live:
        live.apply(candidate)
        assert found.seen == [tokens_after_image(loaded, image, 12)]


def assert_continued(loaded: LoadedModel, candidate: Candidate, found: list[list[int]]) -> None:
    """The candidate in memory continues the prompts with the tokens that were found."""
    with LiveModel(loaded, PlainLibrary(loaded)) as live:
        live.apply(candidate)
        for prompt, theirs in zip(PROMPTS, found, strict=True):
            ours = greedy_tokens(loaded.model, prompt, len(theirs))
            line = first_difference(loaded.model, prompt, ours, theirs)
            if line is not None:
                print(line)
                assert line.startswith("close"), line


@pytest.mark.parametrize("engine", ["llama.cpp"])
def test_quantised_weights_are_loaded(engine: str, tmp_path: Path) -> None:
    loaded = windowless("llama", layers=4, hidden=256)
    levels = {"1.mlp": DROP, "2.attention": Level(kv_groups=1, group_heads=1), "3.attention": DROP}
    candidate = candidate_of(loaded, levels | {"0.mlp": Level(channels=96)})
    library = PlainLibrary(loaded)
    for weights in ("float16", "bfloat16", "q8_0"):
        out = tmp_path / weights
        materialize(loaded, library, candidate, out, format="gguf", weights=weights)
        best = GgufReference(out / "model.gguf").logits(np.array(PROMPTS[0]))[-1].argmax()
        assert generate(engine, out, PROMPTS[:1], new_tokens=1).tokens == [[best]]


@pytest.mark.parametrize("engine", ["llama.cpp"])
@pytest.mark.parametrize("kind", [*KNOWN, *PIECES])
def test_text_is_cut_as_by_the_model_s_tokenizer(engine: str, kind: str, tmp_path: Path) -> None:
    tokenizer = piece_tokenizer(kind) if kind in PIECES else trained_tokenizer(kind)
    model = windowless("llama", layers=1, hidden=256, vocabulary=700)
    loaded = replace(model, tokenizer=tokenizer)
    out = materialize(loaded, None, candidate_of(loaded, {}), tmp_path / "out", format="gguf")
    texts = (*TEXTS, "a     b", "tail   ", "ab\n\n\tcd")
    texts += () if kind == "llama" else ("   three", " " * 21 + "x")
    found = generate(engine, out, PROMPTS[:1], new_tokens=1, texts=texts)
    ours = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert found.texts == ours
