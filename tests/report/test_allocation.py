import numpy as np
import pytest
from fabricate import BLOCKS, DROPPED, STEP, candidate, units

from evocompress.report.allocation import grid
from evocompress.report.figures import allocation_map
from evocompress.types import DROP, Level, Unit

NAME = "model.layers.7.mlp.up_proj"
ROLES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def test_rows_are_roles_and_columns_blocks() -> None:
    cells = grid(units(), {NAME: Level(zeros=STEP)})
    assert cells.roles == ROLES
    assert [len(row) for row in cells.cells] == [BLOCKS] * 7


def test_a_cell_has_its_own_zeros() -> None:
    cells = grid(units(), {NAME: Level(zeros=STEP)})
    cell = cells.cells[ROLES.index("up_proj")][7]
    assert cell is not None
    assert (cell.unit, cell.level) == (NAME, Level(zeros=STEP))
    assert cell.zeros == pytest.approx(STEP / (1536 * 576))
    assert sum(other.zeros > 0 for other in cells.present) == 1


def test_matrices_below_a_dropped_sublayer_are_dropped() -> None:
    winner = candidate(np.random.default_rng(1), DROPPED)
    cells = grid(units(), winner.by_name)
    gone = {(cell.unit.split(".")[2], cell.unit.split(".")[3])
            for cell in cells.present if cell.level.drop}  # fmt: skip
    assert gone == {("11", "self_attn"), ("25", "mlp")}


def test_rows_are_sublayers_where_nothing_has_zeros() -> None:
    cells = grid(units(), {"model.layers.3.attention": DROP})
    assert cells.roles == ("attention", "mlp")
    assert [cell.unit for cell in cells.present if cell.level.drop] == ["model.layers.3.attention"]


def test_a_block_may_lack_a_role() -> None:
    some = [unit for unit in units() if unit.name != "model.layers.2.self_attn.k_proj"]
    cells = grid(some, {NAME: Level(zeros=1)})
    assert cells.cells[1][2] is None
    assert cells.cells[1][3] is not None


def test_figure_holds_percent_and_marks_dropped_apart() -> None:
    levels = {NAME: Level(zeros=1536 * 576 // 4), DROPPED[0]: DROP}
    zeros, dropped, _ = allocation_map(grid(units(), levels)).data
    row = ROLES.index("up_proj")
    assert zeros.z[row][7] == pytest.approx(25.0)
    assert zeros.z[row][8] == 0
    assert zeros.z[0][11] is None and dropped.z[0][11] == 1
    assert dropped.z[row][7] is None
    assert zeros.customdata[row][7] == f"<b>{NAME}</b><br>25% zeros<br>zeros={1536 * 576 // 4}"
    assert zeros.customdata[0][11].endswith("<br>dropped")


def test_figure_of_a_model_without_a_unit_left() -> None:
    only = [Unit("b", "block", None, 0, "block"), Unit("b.mlp", "mlp", "b", 0, "mlp")]
    figure = allocation_map(grid(only, {"b.mlp": DROP}))
    assert [list(row) for row in figure.data[0].z] == [[1]]
