"""Matrices of groups in vLLM, which computes them in half precision; `make engines` installs it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from evocompress import api
from evocompress.compression import rounded_inputs
from evocompress.compression.library import build_library
from evocompress.compression.live_model import LiveModel
from evocompress.core.config import LibraryConfig, RunConfig
from evocompress.core.errors import RunError
from evocompress.core.types import DENSE, DROP, Candidate, Level
from evocompress.export import choose_for, materialize, read_record
from evocompress.export.formats import type_rules_of
from evocompress.export.healed import read_candidate_model
from evocompress.models.loading import LoadedModel, load
from evocompress.testing.engines import (
    CLOSE,
    Generated,
    first_difference,
    generate,
    generate_from_each,
    greedy_tokens,
    why_missing,
)
from evocompress.testing.formats import LevelsByEnd, candidate_of
from evocompress.testing.tiny import tiny_tokenizer, windowless

pytestmark = pytest.mark.engines

FORMAT = "compressed-tensors-vllm"

PROMPTS = [
    torch.randint(1, 240, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    for length in (3, 8, 17, 32)
]

UNEVEN: LevelsByEnd = {
    "0.mlp": Level(channels=96),
    "1.mlp": DROP,
    "2.attention": Level(kv_groups=1, group_heads=2),
    "3.attention": DROP,
}

WITHOUT_KERNEL = "Failed to find a kernel that can implement the WNA16 linear layer"


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return windowless("llama", layers=4, hidden=256)


def typed(loaded: LoadedModel, levels: LevelsByEnd, kinds: tuple[str, ...]) -> Candidate:
    """All matrices that are left in types, those of one tensor in one."""
    named = candidate_of(loaded, levels).by_name
    gone = tuple(name for name, level in named.items() if level.drop)
    units = loaded.family.units(loaded.model)
    rules = type_rules_of(FORMAT, loaded, uneven=True)
    matrices = [
        unit.name
        for unit in units
        if unit.kind == "matrix" and unit.parent not in gone and unit.name not in rules.untyped
    ]
    words = [rules.tied.get(name, name) for name in matrices]
    order = list(dict.fromkeys(words))
    pairs = zip(matrices, words, strict=True)
    bits = {name: Level(bits=kinds[order.index(word) % len(kinds)]) for name, word in pairs}
    return Candidate(tuple(sorted({**named, **bits}.items())))


def library_of(loaded: LoadedModel, candidate: Candidate, folder: Path):
    wanted = {name: [DENSE, level] for name, level in candidate.levels if not level.drop}
    tokens = torch.randint(1, 250, (8, 32), generator=torch.Generator().manual_seed(0))
    config = LibraryConfig(width_criterion="magnitude")
    return build_library(loaded, wanted, tokens, "tokens", config, folder, batch=4)


def no_vllm() -> str | None:
    """Why vLLM does not compute matrices of 4 bits here; ``None`` if it does."""
    if "avx512f" not in Path("/proc/cpuinfo").read_text():
        return "vllm: its kernel for 4 bits on a CPU needs AVX-512"
    return why_missing("vllm")


@torch.no_grad()
def error_in_half(model: PreTrainedModel) -> float:
    """How far float16 takes the logits of a model from those of float32."""
    half = copy.deepcopy(model).half()
    ids = [torch.tensor([prompt]) for prompt in PROMPTS]
    pairs = [(half(one).logits.float(), model(one).logits) for one in ids]
    return max(float((ours - theirs).abs().max()) for ours, theirs in pairs)


@contextmanager
def steps_of(engine: str) -> Iterator[None]:
    """Of inputs: of vLLM 127 are a token's largest; of compressed-tensors 127.5, -128 to 127."""
    with pytest.MonkeyPatch.context() as patch:
        if engine == "vllm":
            patch.setattr(rounded_inputs, "LEAST", -127)
        yield


CASES: dict[str, tuple[LevelsByEnd, tuple[str, ...]]] = {
    "even": ({}, ("w4g32", "w4g64", "w4g128")),
    "uneven": (UNEVEN, ("w4g32",)),
    "eight": ({}, ("w8g32",)),
    "inputs": ({}, ("w8a8", "w4g32")),
    "uneven inputs": (UNEVEN, ("w8a8", "w4g32")),
}


@pytest.fixture(scope="module")
def made(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory):
    """For each case a candidate, its library and its checkpoint for vLLM."""
    found = {}
    for name, (levels, kinds) in CASES.items():
        folder = tmp_path_factory.mktemp(name)
        candidate = typed(loaded, levels, kinds)
        library = library_of(loaded, candidate, folder / "library")
        choice = choose_for(loaded, candidate, "vllm")
        assert choice.name == FORMAT and "run by" in choice.reason
        out = materialize(loaded, library, candidate, folder / "out", format=choice.name)
        found[name] = candidate, library, out
    return found


@pytest.fixture(scope="module")
def in_vllm(made) -> dict[str, Generated | RunError]:
    if reason := no_vllm():
        pytest.skip(reason)
    folders = [out for *_, out in made.values()]
    found = generate_from_each("vllm", folders, PROMPTS, dtype="float16")
    return dict(zip(made, found, strict=True))


@pytest.mark.parametrize("case", [case for case in CASES if case != "eight"])
def test_vllm_generates_the_tokens_of_the_candidate(loaded, made, in_vllm, case) -> None:
    found = in_vllm[case]
    if isinstance(found, RunError):
        raise found
    candidate, library, _ = made[case]
    dense = [greedy_tokens(loaded.model, prompt) for prompt in PROMPTS]
    assert found.tokens != dense
    with LiveModel(loaded, library) as live, steps_of("vllm"):
        live.apply(candidate)
        close = 2 * error_in_half(loaded.model)
        for prompt, theirs in zip(PROMPTS, found.tokens, strict=True):
            ours = greedy_tokens(loaded.model, prompt, len(theirs))
            line = first_difference(loaded.model, prompt, ours, theirs, close)
            if line is not None:
                print(line, close)
                assert line.startswith("close"), line


def test_vllm_has_no_kernel_for_eight_bits_on_a_cpu(in_vllm) -> None:
    found = in_vllm["eight"]
    assert isinstance(found, RunError) and WITHOUT_KERNEL in str(found)


@pytest.mark.parametrize("case", CASES)
def test_transformers_generates_the_tokens_of_the_candidate(loaded, made, case) -> None:
    pytest.importorskip("compressed_tensors")
    candidate, library, out = made[case]
    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    with LiveModel(loaded, library) as live:
        live.apply(candidate)
        for prompt in PROMPTS:
            ours, theirs = (greedy_tokens(one, prompt) for one in (loaded.model, model))
            line = first_difference(loaded.model, prompt, ours, theirs)
            assert line is None or line.startswith("close"), line


def test_a_searched_candidate_is_read_by_both(loaded, tmp_path) -> None:
    """Of a space of drops, widths and types for vLLM, which leaves out three bits."""
    pytest.importorskip("compressed_tensors")
    loaded.model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(" ".join(f"word{n * n % 2999}" for n in range(3000)))
    sizes = {"library_sequences": 4, "search_sequences": 8, "heldout_sequences": 4, "length": 32}
    settings = {
        "name": "run",
        "runs": str(tmp_path),
        "model": {"source": str(tmp_path / "model")},
        "calibration": {"source": str(tmp_path / "text.txt"), **sizes},
        "space": {
            "drop": {"protect": []},
            "width": {"multiple_of": 64},
            "bits": {"types": ["w4g32", "w8a8", "w3g32"]},
            "fits": "vllm",
            "budget": {"bits_per_weight": 2.4},
        },
        "library": {"width_criterion": "magnitude"},
        "search": {"name": "auto", "tokens": 3000},
    }
    folder = api.search(RunConfig.model_validate(settings))
    assert "space.bits: w3g32: no matrix can have such a type" in (folder / "log.txt").read_text()
    out = api.materialize(folder, out=tmp_path / "out", program="vllm")
    record = read_record(out)
    levels = [level for _, level in Candidate.from_json(record.levels).levels]
    assert any(lv.drop for lv in levels) and any(lv.narrow for lv in levels)
    assert {lv.bits for lv in levels} - {""} == {"w4g32", "w8a8"}
    assert read_record(out).format == FORMAT
    plain = api.materialize(folder, out=tmp_path / "plain", form="hf")
    ours = read_candidate_model(plain, load(str(tmp_path / "model")))
    theirs = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    found = {"transformers": [greedy_tokens(theirs, prompt) for prompt in PROMPTS]}
    close = {"transformers": CLOSE}
    if no_vllm() is None:
        found["vllm"] = generate("vllm", out, PROMPTS, dtype="float16").tokens
        with steps_of("vllm"):
            close["vllm"] = 2 * error_in_half(ours)
    for name, tokens in found.items():
        for prompt, others in zip(PROMPTS, tokens, strict=True):
            with steps_of(name):
                own = greedy_tokens(ours, prompt)
                line = first_difference(ours, prompt, own, others, close[name])
            assert line is None or line.startswith("close"), (name, line)
