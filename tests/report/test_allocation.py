import numpy as np
import pytest
from fabricate import BLOCKS, DROPPED, STEP, candidate, units

from evocompress.core.types import DROP, Level, Unit
from evocompress.report.allocation import UnitGrid, unit_grid
from evocompress.report.maps import allocation_map
from evocompress.report.notes import allocation_text
from evocompress.testing.decoders import SMOLLM2_135M, Decoder

NAME = "model.layers.7.mlp.up_proj"
ROLES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def test_rows_are_roles_and_columns_blocks() -> None:
    cells = unit_grid(units(), {NAME: Level(zeros=STEP)})
    assert cells.roles == ROLES
    assert [len(row) for row in cells.cells] == [BLOCKS] * 7


def test_a_cell_has_its_own_zeros() -> None:
    cells = unit_grid(units(), {NAME: Level(zeros=STEP)})
    cell = cells.cells[ROLES.index("up_proj")][7]
    assert cell is not None
    assert (cell.unit, cell.level) == (NAME, Level(zeros=STEP))
    assert cell.zeros == pytest.approx(STEP / (1536 * 576))
    assert sum(other.zeros > 0 for other in cells.present) == 1


def test_matrices_below_a_dropped_sublayer_are_dropped() -> None:
    winner = candidate(np.random.default_rng(1), DROPPED)
    cells = unit_grid(units(), winner.by_name)
    gone = {(cell.unit.split(".")[2], cell.unit.split(".")[3])
            for cell in cells.present if cell.level.drop}  # fmt: skip
    assert gone == {("11", "self_attn"), ("25", "mlp")}


def test_rows_are_sublayers_where_nothing_has_zeros() -> None:
    cells = unit_grid(units(), {"model.layers.3.attention": DROP})
    assert cells.roles == ("attention", "mlp")
    assert [cell.unit for cell in cells.present if cell.level.drop] == ["model.layers.3.attention"]


def test_a_block_may_lack_a_role() -> None:
    some = [unit for unit in units() if unit.name != "model.layers.2.self_attn.k_proj"]
    cells = unit_grid(some, {NAME: Level(zeros=1)})
    assert cells.cells[1][2] is None
    assert cells.cells[1][3] is not None


def test_figure_holds_percent_and_marks_dropped_apart() -> None:
    levels = {NAME: Level(zeros=1536 * 576 // 4), DROPPED[0]: DROP}
    zeros, dropped, _ = allocation_map(unit_grid(units(), levels)).data
    row = ROLES.index("up_proj")
    assert zeros.z[row][7] == pytest.approx(25.0)
    assert zeros.z[row][8] == 0
    assert zeros.z[0][11] is None and dropped.z[0][11] == 1
    assert dropped.z[row][7] is None
    assert zeros.customdata[row][7] == f"<b>{NAME}</b><br>25% zeros<br>zeros={1536 * 576 // 4}"
    assert zeros.customdata[0][11].endswith("<br>dropped")


def test_figure_of_a_model_without_a_unit_left() -> None:
    only = [Unit("b", "block", None, 0, "block"), Unit("b.mlp", "mlp", "b", 0, "mlp")]
    figure = allocation_map(unit_grid(only, {"b.mlp": DROP}))
    assert [list(row) for row in figure.data[0].z] == [[1]]


NARROW = {
    "model.layers.1.attention": Level(kv_groups=2, group_heads=1),
    "model.layers.2.mlp": Level(channels=384, bias=True),
    "model.layers.3.attention": DROP,
}


def narrow_grid(**more: Level) -> UnitGrid:
    return unit_grid(SMOLLM2_135M.units(), {**NARROW, **more}, SMOLLM2_135M.architecture())


def test_narrow_sublayers_say_what_they_keep() -> None:
    attention, mlp = narrow_grid().cells
    kept = [cell.kept for cell in attention[:4] if cell]
    assert kept == pytest.approx([1.0, 2 / 9, 1.0, 0.0])
    assert attention[1] and attention[1].width == (
        "2 of 3 KV heads × 1 of 3 query heads: 2 of 9 heads"
    )
    assert mlp[2] and (mlp[2].kept, mlp[2].width) == (0.25, "384 of 1536 channels")
    assert mlp[1] and (mlp[1].kept, mlp[1].width) == (1.0, "")


def test_heads_without_groups_are_simply_counted() -> None:
    decoder = Decoder(heads=4, kv_heads=4)
    level = {"model.layers.0.attention": Level(kv_groups=3, group_heads=1)}
    (cell, *_), _ = unit_grid(decoder.units(), level, decoder.architecture()).cells
    assert cell and (cell.kept, cell.width) == (0.75, "3 of 4 heads")


def test_widths_of_an_unknown_model_are_named_but_not_compared() -> None:
    attention, _ = unit_grid(SMOLLM2_135M.units(), NARROW).cells
    assert attention[1] and attention[1].kept is None
    assert attention[1].width == "kv_groups=2,group_heads=1"


def test_sublayers_stand_above_the_matrices_where_both_change() -> None:
    name = "model.layers.2.mlp.up_proj"
    cells = narrow_grid(**{name: Level(zeros=1536 * 576 // 2)})
    assert cells.roles == ("attention", "mlp", *ROLES)
    kept, zeros, dropped, _ = allocation_map(cells).data
    assert kept.z[1][2] == pytest.approx(25.0) and kept.z[cells.roles.index("up_proj")][2] is None
    assert zeros.z[cells.roles.index("up_proj")][2] == pytest.approx(50.0) and zeros.z[1][2] is None
    assert dropped.z[0][3] == dropped.z[2][3] == 1
    assert {kept.colorbar.y, zeros.colorbar.y} == {0, 1}, "the bars do not overlap"


def test_hover_of_widths_biases_and_merges() -> None:
    merged = {"model.layers.5": Level(merge=2)}
    figure = allocation_map(narrow_grid(**merged))
    attention, mlp = figure.data[0].customdata
    assert attention[1].endswith("2 of 9 heads, 22.2%")
    assert mlp[2].endswith("384 of 1536 channels, 25%<br>with a bias for what was cut")
    assert attention[5].endswith("whole<br>its block is merged with the next 2")
    assert "merged" not in attention[4]


def test_the_text_names_the_extremes() -> None:
    text = allocation_text(narrow_grid())
    assert text.startswith("1 of 60 units are dropped. 2 sub-layers are narrowed, ")
    assert "model.layers.1.attention the most (2 of 3 KV heads" in text
    assert text.endswith("model.layers.2.mlp the least (384 of 1536 channels).")


def test_the_text_of_a_single_narrowed_sublayer_names_it_once() -> None:
    levels = {"model.layers.2.mlp": NARROW["model.layers.2.mlp"]}
    cells = unit_grid(SMOLLM2_135M.units(), levels, SMOLLM2_135M.architecture())
    text = allocation_text(cells)
    assert text == "One sub-layer is narrowed, model.layers.2.mlp (384 of 1536 channels)."


def test_experts_have_rows_where_any_is_dropped() -> None:
    mixture = Decoder(layers=2, experts=3, active=2).units()
    gone = "model.layers.1.mlp.experts.2"
    shown = unit_grid(mixture, {gone: DROP})
    row = shown.roles.index("mlp.experts.2")
    assert [cell and cell.kept for cell in shown.cells[row]] == [1.0, 0.0]
    assert "mlp.experts.2" not in unit_grid(mixture, {"model.layers.1.mlp": DROP}).roles
