"""Caches of llama.cpp, and the memory that it takes; `make engines` installs it."""

from dataclasses import replace

import pytest

from evocompress.core.config import SpaceConfig
from evocompress.core.types import DROP, Level
from evocompress.export import materialize
from evocompress.space.build import build_space
from evocompress.testing.engines import resident_memory, why_missing
from evocompress.testing.formats import candidate_of
from evocompress.testing.plain_library import PlainLibrary
from evocompress.testing.tiny import tiny_loaded, windowless

LOGGED = 0.01 * 2**20
"""How exactly llama.cpp says the sizes of two caches, in bytes: less than a head's."""

pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif(why_missing("llama.cpp") is not None, reason="no llama.cpp"),
]


@pytest.mark.parametrize(("context", "batch"), [(40, 1), (300, 2), (300, 5), (1500, 1)])
@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_caches_have_the_size_that_is_counted(tmp_path, model_type, context, batch):
    loaded = windowless("llama") if model_type == "llama" else tiny_loaded(model_type)
    levels = {"1.attention": Level(kv_groups=1, group_heads=2), "2.attention": DROP}
    candidate = candidate_of(loaded, levels if model_type == "llama" else {})
    # llama.cpp takes more tokens than the model was made for.
    architecture = replace(loaded.family.architecture(loaded.model), context=2048)
    served = {"context": context, "batch": batch, "engine": "llama.cpp"}
    space = build_space(
        loaded.family.units(loaded.model),
        architecture,
        SpaceConfig.model_validate({"drop": {}, "memory": served}),
    )
    costs = space.cost_model.costs
    library = PlainLibrary(loaded)
    target = materialize(loaded, library, candidate, tmp_path / "gguf", format="gguf")
    found = resident_memory("llama.cpp", target, target, context=context, batch=batch)
    told = {name: values.item() for name, values in space.cost_model.of([candidate]).items()}
    own = costs["memory"].base - costs["weight_bytes"].base
    cache = told["memory"] - told["weight_bytes"] - own
    assert cache == pytest.approx(found.cache, abs=LOGGED)
    assert found.bytes == pytest.approx(told["memory"], abs=2 * 2**20)
