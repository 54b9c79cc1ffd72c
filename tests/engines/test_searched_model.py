"""SmolLM2-135M from a search to vLLM and llama.cpp, which `make engines` installs."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import evocompress.hf  # noqa: F401
from evocompress import api
from evocompress.core.config import RunConfig
from evocompress.export import read_record
from evocompress.testing.engines import first_difference, generate, greedy_tokens, why_missing

pytestmark = [pytest.mark.engines, pytest.mark.real]

PROMPTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "Once upon a time there was a small village by the sea, in which",
    "def add(a, b):",
    "In 1969 two astronauts",
    "My favourite season is autumn, because",
    "Dear Sir or Madam, I am writing to you about",
    "Photosynthesis is the process by which plants",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short search at 0.75 of the parameters, of widths and drops."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "text.txt").write_text("\n".join(PROMPTS * 40))
    sizes = {"library_sequences": 4, "search_sequences": 8, "heldout_sequences": 2, "length": 64}
    config = {
        "name": "searched",
        "runs": str(folder),
        "model": {"source": "demo:smollm2-135m", "dtype": "float32", "device": "cpu"},
        "calibration": {"source": str(folder / "text.txt"), **sizes},
        "space": {"width": {}, "drop": {}, "budget": {"params": 0.75}, "fits": "gguf"},
        "library": {"width_criterion": "magnitude"},
        "search": {"name": "auto", "tokens": 6000},
    }
    return api.search(RunConfig.model_validate(config))


@pytest.mark.parametrize("engine", ["vllm", "llama.cpp"])
def test_engines_continue_prompts_as_transformers_does(
    engine: str, run: Path, tmp_path: Path
) -> None:
    reason = why_missing(engine)
    if reason is not None:
        pytest.skip(reason)
    ours = api.materialize(run, out=tmp_path / "ours", program="transformers")
    theirs = api.materialize(run, out=tmp_path / "theirs", program=engine)
    assert read_record(ours).measured["params"] <= 0.75 * 134_515_008 * (1 + 1e-9)
    model = AutoModelForCausalLM.from_pretrained(ours)
    tokenizer = AutoTokenizer.from_pretrained(ours)
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
    found = generate(engine, theirs, prompts, texts=PROMPTS if engine == "llama.cpp" else ())
    assert found.texts in ([], prompts)
    for prompt, tokens in zip(prompts, found.tokens, strict=True):
        line = first_difference(model, prompt, greedy_tokens(model, prompt), tokens)
        if line is not None:
            print(line)
            assert line.startswith("close"), line
