"""Formats of models that are no language models and have no modeling file of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from export_cases import write
from safetensors.torch import load_file, save_file
from torch import nn

import evocompress.hf  # noqa: F401
from evocompress.export import read_record
from evocompress.models.families.derivation.encoders import DerivedEncoder
from evocompress.models.families.derivation.from_config import class_for
from evocompress.models.families.derivation.shrink import CHANNEL_KEYS, random_model, shrunk
from evocompress.models.loading import LoadedModel, load, loaded
from evocompress.models.tasks import EMBEDDINGS, IMAGE_CLASSES, IMAGE_EMBEDDINGS, TEXT_CLASSES, Task
from evocompress.space.costs import cost_model
from evocompress.testing.derived import typical_config
from evocompress.testing.formats import (
    FormatContract,
    candidate_of,
    in_memory,
    with_bias,
    with_zeros,
)
from evocompress.testing.probes import answer, random_batch
from evocompress.testing.tiny import tiny_tokenizer

CHANNELS = 128
TYPES: dict[str, Task] = {
    "distilbert": TEXT_CLASSES,
    "modernbert": EMBEDDINGS,
    "mpnet": EMBEDDINGS,
    "albert": EMBEDDINGS,
    "dinov2": IMAGE_CLASSES,
    "siglip_vision_model": IMAGE_EMBEDDINGS,
}
LOAD = """
import sys
import transformers
from safetensors.torch import load_file, save_file
folder, auto, name = sys.argv[1:]
model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True)
output = model(**{name: load_file("batch.safetensors")["batch"]})
save_file({"found": output[0].contiguous()}, "found.safetensors")
assert "evocompress" not in sys.modules
"""


def encoder(name: str, task: Task) -> LoadedModel:
    """A random model of four blocks in float32 whose MLPs have 128 channels or more."""
    # Of six layers some share their weights.
    config = shrunk(typical_config(name), 6 if name == "albert" else 4)
    for key in CHANNEL_KEYS:
        if hasattr(config, key):
            setattr(config, key, CHANNELS)
    model = random_model(class_for(config, task), config)
    nn.Module.float(model)
    model.config.dtype = torch.float32
    return loaded(model, tiny_tokenizer() if task.reads_text else None, f"tiny:{name}")


@pytest.fixture(params=TYPES)
def model(request: pytest.FixtureRequest) -> LoadedModel:
    found = encoder(request.param, TYPES[request.param])
    assert isinstance(found.family, DerivedEncoder)
    return found


class TestEncoders(FormatContract):
    @pytest.fixture(params=["hf", "stock", "padded"])
    def format(self, request: pytest.FixtureRequest) -> str:
        name: str = request.param
        return name

    @pytest.fixture
    def loaded(self, model: LoadedModel) -> LoadedModel:
        return model

    def written(self, loaded: LoadedModel, able: list[str]) -> list[str]:
        return ["lacking", "biased"] if able[-1] == "biased" else able


def test_costs_of_files_are_those_of_the_cost_model(model: LoadedModel, tmp_path: Path) -> None:
    candidate = candidate_of(model, with_zeros(model, with_bias(model)))
    record = read_record(write(model, candidate, tmp_path / "out", "hf"))
    family = model.family
    costs = cost_model(family.units(model.model), family.architecture(model.model)).of([candidate])
    assert record.measured == {name: costs[name].item() for name in record.measured}


@pytest.mark.parametrize("name", ["modernbert", "albert", "dinov2"])
def test_it_is_read_without_this_package_and_compressed_again(name: str, tmp_path: Path) -> None:
    dense = encoder(name, TYPES[name])
    candidate = candidate_of(dense, with_bias(dense))
    out = write(dense, candidate, tmp_path / "out", "hf")
    task, batch = dense.family.task, random_batch(dense.family, dense.model)
    save_file({"batch": batch}, tmp_path / "batch.safetensors")
    run([str(out), task.auto.__name__, task.input], tmp_path)
    again = load(str(out), dtype="float32", device="cpu")
    assert isinstance(again.family, DerivedEncoder)
    assert again.family.at(0).matrices == dense.family.at(0).matrices
    expected = in_memory(dense, candidate, batch)
    torch.testing.assert_close(answer(again.family, again.model, batch), expected)
    output = again.model(**task.inputs(batch))
    found = load_file(tmp_path / "found.safetensors")["found"]
    torch.testing.assert_close(found, output[0])


def run(arguments: Sequence[str], folder: Path) -> None:
    """Load and run a checkpoint in a process without this package."""
    command = [sys.executable, "-c", LOAD, *arguments]
    subprocess.run(command, cwd=folder, env={"PATH": "/usr/bin"}, check=True, capture_output=True)
