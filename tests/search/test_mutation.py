import numpy as np
import pytest

from evocompress.core.config import SpaceConfig
from evocompress.search.operators.mutation import distinct, flips, mutate, transpose
from evocompress.space import sampling
from evocompress.space.build import build_space
from evocompress.testing.decoders import Decoder

DECODER = Decoder(layers=8)


def space_of(**config):
    return build_space(DECODER.units(), DECODER.architecture(), SpaceConfig(**config))


SPARSITY = space_of(sparsity={"target": 0.5, "levels": 6})
DEPTH = space_of(drop={}, budget={"body_params": 0.7})
BLOCKS = space_of(drop={"units": ["block"]}, budget={"body_params": 0.7})
JOINT = space_of(sparsity={"target": 0.5}, drop={}, budget={"matrix_nonzeros": 0.4})


def children(space, count, **caps):
    rng = np.random.default_rng(5)
    parent = sampling.uniform(space)
    return parent, np.stack([mutate(space, parent, rng, **caps) for _ in range(count)])


def chi_square(counts, probabilities):
    expected = np.array(probabilities) * sum(counts)
    return float(((np.array(counts) - expected) ** 2 / expected).sum())


def test_number_of_flips_is_the_published_one():
    rng = np.random.default_rng(0)
    drawn = [flips(rng) for _ in range(9000)]
    counts = [drawn.count(n) for n in (1, 2, 3)]
    assert sum(counts) == 9000
    assert chi_square(counts, [5 / 9, 3 / 9, 1 / 9]) < 13.8  # 0.999 quantile, 2 degrees


def test_sparsity_moves_keep_the_total_and_move_at_most_three_up_and_down():
    parent, offspring = children(SPARSITY, 2000)
    change = offspring - parent
    nonzeros = SPARSITY.costs(offspring)["matrix_nonzeros"]
    assert (change.sum(axis=1) == 0).all()
    assert (nonzeros == SPARSITY.costs(parent[None])["matrix_nonzeros"]).all()
    assert set(np.abs(change).sum(axis=1).tolist()) == {0, 2, 4, 6}
    assert ((offspring >= 0) & (offspring < SPARSITY.encoding.sizes)).all()


def test_every_matrix_is_moved_equally_often():
    parent, offspring = children(SPARSITY, 4000)
    for direction in (-1, 1):
        counts = np.maximum((offspring - parent) * direction, 0).sum(axis=0)
        degrees = len(counts) - 1
        spread = 2 / (9 * degrees)  # Wilson and Hilferty's approximation, at 0.999
        limit = degrees * (1 - spread + 3.09 * spread**0.5) ** 3
        assert chi_square(counts, np.full(len(counts), 1 / len(counts))) < limit


def test_moves_stay_within_the_levels():
    rng = np.random.default_rng(0)
    genome = sampling.uniform(SPARSITY)
    for _ in range(3000):
        genome = mutate(SPARSITY, genome, rng)
    assert ((genome >= 0) & (genome < SPARSITY.encoding.sizes)).all()
    assert (genome == 0).any()
    assert (genome == SPARSITY.encoding.sizes - 1).any()


def test_max_level_caps_the_distance_from_the_target():
    rng = np.random.default_rng(0)
    genome = sampling.uniform(SPARSITY)
    for _ in range(500):
        genome = mutate(SPARSITY, genome, rng, max_level=2)
    assert np.abs(genome - SPARSITY.encoding.default).max() == 2


@pytest.mark.parametrize("space", [DEPTH, BLOCKS])
def test_depth_moves_keep_the_count_of_each_kind(space):
    parent, offspring = children(space, 500)
    moved = (offspring != parent).sum(axis=1)
    assert set(moved.tolist()) == {0, 2, 4, 6}
    assert (moved > 0).mean() > 0.9  # a later flip may undo an earlier one
    for units in space.encoding.by_kind.values():
        assert (offspring[:, units].sum(axis=1) == parent[units].sum()).all()


def test_attention_and_mlp_are_chosen_equally():
    parent, offspring = children(DEPTH, 4000)
    changed = (offspring != parent).astype(int)
    single = changed[changed.sum(axis=1) == 2]
    attention = single[:, DEPTH.encoding.by_kind["attention"]].any(axis=1)
    assert chi_square([attention.sum(), (~attention).sum()], [0.5, 0.5]) < 10.8


def test_joint_moves_touch_both_kinds_and_leave_void_units_at_their_start():
    parent, offspring = children(JOINT, 300)
    genes = JOINT.encoding
    assert (offspring == JOINT.deactivate(offspring)).all()
    assert (offspring != parent)[:, genes.matrices].any()
    assert (offspring != parent)[:, genes.droppable].any()


def test_distinct_gives_up_when_nothing_is_new():
    endless = iter(np.array([[0], [1], [1], [0]] + [[1]] * 1000))
    found = distinct(lambda: next(endless), 5, excluded=np.array([0]))
    assert [genome.tolist() for genome in found] == [[1]]


@pytest.mark.parametrize(
    "space", [SPARSITY, DEPTH, BLOCKS, JOINT], ids=["sparsity", "depth", "blocks", "joint"]
)
def test_two_blocks_change_places(space):
    rng = np.random.default_rng(3)
    blocks = np.array([unit.block for unit in space.units])
    for _ in range(50):
        parent = sampling.random(space, rng)
        child = transpose(space, parent, rng)
        changed = np.unique(blocks[child != parent])
        assert len(changed) == 2
        one, other = (np.flatnonzero(blocks == block) for block in changed)
        assert (child[one] == parent[other]).all() and (child[other] == parent[one]).all()
        assert space.feasible(child[None])[0]


def test_blocks_that_are_all_alike_stay():
    parent = sampling.uniform(SPARSITY)
    assert (transpose(SPARSITY, parent, np.random.default_rng(0)) == parent).all()
