"""The rules of llama.cpp's mixes, against the files that its own quantizer makes."""

import re
from functools import cache
from math import prod

import gguf
import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from evocompress.core.types import Candidate
from evocompress.export import materialize
from evocompress.export.gguf_architectures import ARCHITECTURES, architecture_of
from evocompress.export.gguf_tensors import gguf_name
from evocompress.models.families.outer import every_unit
from evocompress.search.baselines.llama_cpp_rules import MIXES, mix_types
from evocompress.testing.engines import llama_cpp_quantize, why_missing
from evocompress.testing.tiny import loaded as loaded_as
from evocompress.testing.tiny import tiny_tokenizer

pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif(why_missing("llama.cpp") is not None, reason="there is no llama.cpp"),
]

LAYERS = 17
"""Of which an eighth and a sixteenth are not the same number."""

MODELS = {
    "some rows of 256": ("llama", {"intermediate_size": 512, "num_key_value_heads": 2}),
    "all rows of 256": ("llama", {"hidden_size": 256, "intermediate_size": 512}),
    "one matrix for embedding and head": (
        "llama",
        {"hidden_size": 256, "intermediate_size": 512, "tie_word_embeddings": True},
    ),
    "one key-value head": ("llama", {"intermediate_size": 256, "num_key_value_heads": 1}),
    "eight experts": ("mixtral", {"intermediate_size": 256, "num_local_experts": 8}),
    "four experts": ("mixtral", {"intermediate_size": 256, "num_local_experts": 4}),
    "one matrix of queries, keys and values": ("phi3", {"intermediate_size": 256}),
    "gpt2": ("gpt2", {"n_embd": 128, "n_layer": LAYERS, "n_head": 4}),
}


WITH_IMATRIX = ("some rows of 256", "one key-value head")
"""Those with which rules about importance matrices are tried: of many heads and of one."""


def dense(kind):
    model_type, own = MODELS[kind]
    common = {"hidden_size": 128, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
    settings = {"vocab_size": 256, "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 0}
    settings |= own if model_type == "gpt2" else common | own
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings))
    return loaded_as(model.eval(), tiny_tokenizer(), "tiny")


CASES = [
    pytest.param(name, imatrix, id=f"{name}, {'imatrix' if imatrix else 'plain'}")
    for name in MODELS
    for imatrix in (False, True)
    if not imatrix or name in WITH_IMATRIX
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """By its name a model and its file, made once."""

    @cache
    def made(name):
        loaded = dense(name)
        out = tmp_path_factory.mktemp("dense") / "out"
        written = materialize(loaded, None, Candidate(), out, format="gguf")
        return loaded, written / "model.gguf"

    return made


def tensor_name(loaded, unit):
    expert = re.fullmatch(r".*\.(\d+)\..*experts\.\d+\.(\w+)_proj", unit)
    if expert:
        return f"blk.{expert[1]}.ffn_{expert[2]}_exps.weight"
    alike = loaded.model.config.model_type in ARCHITECTURES
    return gguf_name(f"{unit}.weight", loaded.model, architecture_of(loaded, alike=alike).name)


@pytest.mark.parametrize(("name", "imatrix"), CASES)
def test_every_tensor_has_the_type_that_the_rules_say(models, name, imatrix, tmp_path):
    loaded, source = models(name)
    units = every_unit(loaded.family, loaded.model)
    shapes = {t.name: t.shape.tolist() for t in gguf.GGUFReader(source).tensors}
    places = {u.name: tensor_name(loaded, u.name) for u in units if u.shape}
    inputs = {name: prod([shapes[name][0], *shapes[name][2:]]) for name in places.values()}
    importance = {name: [1.0] * count for name, count in inputs.items()} if imatrix else None
    targets = {mix: tmp_path / f"{mix}.gguf" for mix in MIXES}
    llama_cpp_quantize(source, targets, importance=importance)
    for mix, made in targets.items():
        found = {t.name: t.tensor_type.name.lower() for t in gguf.GGUFReader(made).tensors}
        types = mix_types(mix, units, imatrix=imatrix)
        assert {name: (mix, types[name]) for name in places} == {
            name: (mix, found[place]) for name, place in places.items()
        }
