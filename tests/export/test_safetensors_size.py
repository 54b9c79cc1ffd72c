"""The size of a safetensors file, told before it is written, of models of every structure."""

import pytest

from evocompress.core.canonical import SUBLAYERS, canonical
from evocompress.core.errors import ConfigError
from evocompress.core.types import DROP, Candidate
from evocompress.export import materialize
from evocompress.export.formats import file_layout_of
from evocompress.models.families.outer import every_unit
from evocompress.space.costs import cost_model
from evocompress.testing.tiny import tiny_loaded


@pytest.mark.parametrize("model_type", ["llama", "bert", "mamba", "jamba", "resnet"])
def test_what_goes_with_a_sublayer_goes_with_its_bytes(model_type, tmp_path):
    """Biases, norms, states and buffers: all but a few digits of places in the header."""
    loaded = tiny_loaded(model_type)
    units = loaded.family.units(loaded.model)
    dropped = [u.name for u in units if u.kind in (*SUBLAYERS, "block") and u.droppable]
    candidates = [Candidate(), *(canonical({name: DROP}, units) for name in dropped[-3:])]
    assert dropped
    model = cost_model(
        every_unit(loaded.family, loaded.model),
        loaded.family.architecture(loaded.model),
        file=file_layout_of("hf", loaded, uneven=True),
    )
    told = model.of(candidates)["file_bytes"]
    for place, candidate in enumerate(candidates):
        out = materialize(loaded, None, candidate, tmp_path / f"{place}", format="hf")
        size = (out / "model.safetensors").stat().st_size
        assert told[place] == pytest.approx(size, rel=5e-4)


def test_a_model_that_the_format_does_not_hold_is_refused():
    with pytest.raises(ConfigError, match="'file_bytes' is that of format 'gguf', which.*opt"):
        file_layout_of("gguf", tiny_loaded("opt"), uneven=False)
