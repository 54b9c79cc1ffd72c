"""What a run depends on, and what a check before measuring leaves out."""

from dataclasses import replace

import numpy as np

from evocompress.config import RunConfig
from evocompress.families import FAMILIES
from evocompress.rehearsal import unbounded
from evocompress.space import build_space
from evocompress.testing.tiny import tiny_model
from evocompress.workbench import _genes_digest


def config(**changes):
    width = {"width": {"multiple_of": 8}}
    return RunConfig.model_validate(
        {"name": "n", "model": {"source": "m"}, "space": width, **changes}
    )


def test_the_digest_of_a_space_covers_all_that_gives_a_genome_its_meaning():
    model, family = tiny_model("llama"), FAMILIES["llama"]
    genes = build_space(family.units(model), family.architecture(model), config().space).genes
    members = tuple((*units, units[0]) for units in genes.members)
    others = [
        replace(genes, members=members),
        replace(genes, levels=tuple(levels[::-1] for levels in genes.levels)),
        replace(genes, start=genes.start + 1),
        replace(genes, merges=True),
    ]
    assert len({_genes_digest(each) for each in (genes, *others)}) == 5
    assert _genes_digest(replace(genes, start=np.array(genes.start))) == _genes_digest(genes)


def test_only_bounds_on_latencies_are_lifted():
    space = {"width": {}, "budget": {"latency": 3.5, "params": 0.5}}
    ranges = {"decode_latency": [0.2, 0.5], "flops": [0.1, 0.6], "latency": [0.5, 0.4]}
    run = config(space=space, search={"name": "nsga2", "range": ranges, "rungs": 3})
    lifted = unbounded(run)
    assert lifted.space.budget == {"latency": 1.0, "params": 0.5}
    assert lifted.search.settings == {
        "range": {"decode_latency": (0.0, 1.0), "flops": (0.1, 0.6), "latency": (0.5, 0.4)},
        "rungs": 3,
    }
    assert lifted.model_copy(update={"space": run.space, "search": run.search}) == run
    plain = config(space={"width": {}, "budget": {"params": 0.5}})
    assert unbounded(plain) == plain
