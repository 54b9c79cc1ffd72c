import pytest

from evocompress.evaluation.heldout import count_flops
from evocompress.models.families import family_of
from evocompress.space.costs import cost_model
from evocompress.testing.staged import require_packages
from evocompress.testing.tiny import NAMES, tiny_model

LENGTH = 32


@pytest.mark.parametrize("model_type", sorted(NAMES))
def test_counted_operations_are_the_predicted_ones(model_type):
    require_packages(model_type)
    model = tiny_model(model_type).eval()
    family = family_of(model)
    architecture = family.architecture(model)
    length = architecture.tokens or LENGTH
    predicted = cost_model(family.units(model), architecture, length=length).dense()["flops"]
    counted = count_flops(model, length, family.task)
    if model.config._attn_implementation == "sdpa" and not any(architecture.windows):
        assert counted == predicted
    else:
        # An explicit mask: the pairs above the diagonal are computed as well.
        above = LENGTH * (LENGTH - 1) // 2
        heads = sum(architecture.heads) * architecture.head_dim
        assert counted - predicted >= 4 * heads * above / len(architecture.heads)
