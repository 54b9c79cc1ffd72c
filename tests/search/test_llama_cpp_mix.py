"""llama.cpp's mixes as a searcher; tests/engines has the rules against llama.cpp itself."""

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from evocompress.core.config import SpaceConfig
from evocompress.core.errors import ConfigError
from evocompress.core.requests import Pool
from evocompress.core.types import Unit
from evocompress.search.base import Problem
from evocompress.search.baselines.llama_cpp_mix import LlamaCppMix
from evocompress.search.baselines.llama_cpp_rules import MIXES, mix_types
from evocompress.space.build import build_space
from evocompress.testing.decoders import SMOLLM2_135M, Decoder
from evocompress.testing.searchers import Separable, run

KINDS = ("q8_0", "q6_k", "q5_1", "q5_0", "q4_k", "q4_1", "q4_0")


def searcher(space, decoder=SMOLLM2_135M, **settings):
    found = build_space(decoder.units(), decoder.architecture(), SpaceConfig(**space))
    problem = Problem(found, Pool((512,) * 4))
    return LlamaCppMix(problem, LlamaCppMix.Settings(**settings), np.random.default_rng(0))


def best(search):
    run(search, Separable.of(search.space))
    return {name: level.bits for name, level in search.incumbent().candidate.levels}


def test_a_mix_is_measured_once():
    search = searcher({"bits": {"types": KINDS}, "budget": {"bits_per_weight": 8.5}}, mix="Q4_K_M")
    [request] = search.ask()
    assert len(request.micro_batches) == 4
    assert best(search) == mix_types("Q4_K_M", SMOLLM2_135M.units(), imatrix=False)
    assert search.ask() == []


def test_the_largest_mix_within_the_budget_is_taken():
    sizes = {}
    for mix in ("Q6_K", "Q5_1", "Q4_K_M", "Q4_1", "Q4_0"):
        search = searcher({"bits": {"types": KINDS}, "budget": {"bits_per_weight": 8.5}}, mix=mix)
        genome = search.genome_of(mix)
        sizes[mix] = search.space.costs(genome[None])["bits_per_weight"].item()
    assert sizes["Q4_0"] < sizes["Q4_1"] < sizes["Q4_K_M"] < sizes["Q5_1"] < sizes["Q6_K"]
    for mix in ("Q4_1", "Q4_K_M"):
        space = {"bits": {"types": KINDS}, "budget": {"bits_per_weight": sizes[mix] + 0.001}}
        assert best(searcher(space)) == mix_types(mix, SMOLLM2_135M.units(), imatrix=False)


def test_some_matrices_have_the_types_that_they_have_among_all():
    space = {
        "bits": {"types": KINDS, "match": ["*.v_proj"]},
        "budget": {"weight_bytes": 0.987},
    }
    whole = mix_types("Q4_K_M", SMOLLM2_135M.units(), imatrix=False)
    found = best(searcher(space, mix="Q4_K_M"))
    assert found == {name: kind for name, kind in whole.items() if name.endswith("v_proj")}


@pytest.mark.parametrize(
    ("space", "settings", "said"),
    [
        ({"bits": {"types": ["w4g64"]}}, {}, "llama.cpp's types, and those of space.bits are"),
        ({"bits": {"types": KINDS}, "drop": {}}, {}, "has 'drop' as well"),
        ({"sparsity": {"target": 0.5}}, {}, "alone, and this space has 'zeros="),
        (
            {"bits": {"types": ["q8_0", "q4_0"]}},
            {"mix": "Q4_K_M"},
            "Q4_K_M stores 'model.layers.0.self_attn.q_proj' as q5_0, which is none of its types",
        ),
        ({"bits": {"types": KINDS}}, {"mix": "Q8_0"}, "Q8_0 takes bits_per_weight 8.5 of 6"),
        ({"bits": {"types": ["f16", "mxfp4"]}}, {}, "no mix for this space; .*Q8_0 stores"),
        (
            {"bits": {"types": ["q8_0", "q5_0", "mxfp4"]}, "budget": {"bits_per_weight": 5.2}},
            {},
            "no mix for this space; Q5_0 takes bits_per_weight 5.5 of 5.2",
        ),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(space, settings, said):
    budget = {"budget": {"bits_per_weight": 6.0}} if "bits" in space else {}
    with pytest.raises(ConfigError, match="(search.name|search.mix): .*" + said):
        searcher(budget | space, **settings)


def test_an_unknown_mix_is_refused_with_those_that_there_are():
    with pytest.raises(ValidationError, match="there is no mix 'Q9_K': choose among Q8_0, Q6_K"):
        LlamaCppMix.Settings(mix="Q9_K")


def test_rows_that_no_block_divides():
    units = Decoder(hidden=48, heads=4).units()
    assert {*mix_types("Q4_K_M", units, imatrix=False).values()} == {"f16", "q5_0", "q8_0"}
    with pytest.raises(ConfigError, match="no file of mix Q4_0 .* nothing stands in for q4_0"):
        mix_types("Q4_0", units, imatrix=False)


def test_a_large_model_has_finer_values():
    deep = Decoder(layers=80, hidden=256, heads=4, kv_heads=2, ffn=256)
    found = mix_types("Q4_K_S", deep.units(), imatrix=False)
    assert found["model.layers.40.self_attn.v_proj"] == "q5_k"
    assert found["model.layers.40.self_attn.q_proj"] == "q4_k"


def test_the_head_is_finer_also_where_it_is_the_embedding():
    units = Decoder(hidden=256, heads=4, ffn=256).units()
    outer = [
        Unit(name, "outer", None, block, role, shape=(64, 256))
        for name, block, role in (("embed", 0, "embedding"), ("lm_head", 3, "head"))
    ]
    found = mix_types("Q4_K_M", [*units, *outer], imatrix=False)
    assert (found["embed"], found["lm_head"]) == ("q4_k", "q6_k")
    assert mix_types("Q4_K_M", [*units, outer[0]], imatrix=False)["embed"] == "q6_k"
    narrow = replace(outer[0], shape=(64, 96))
    assert mix_types("Q4_K_M", [*units, narrow], imatrix=False)["embed"] == "q8_0"


def test_matrices_whose_roles_are_unknown_are_refused():
    plain = [replace(unit, rows=(), columns=()) for unit in Decoder(hidden=64).units()]
    for mix in MIXES:
        with pytest.raises(ConfigError, match="knows none of 'model.layers.0.self_attn.o_proj'"):
            mix_types(mix, plain, imatrix=False)
