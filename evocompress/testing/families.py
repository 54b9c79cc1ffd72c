"""What every model family must fulfil, checked on a tiny random model of it.

`FamilyContract` is the base of a test class; give it a ``name`` fixture, one of `NAMES`.
Every check is against the real model: its own forward pass, its modules, its parameters.
"""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from functools import partial
from itertools import product

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from evocompress.core.widths import axis_lengths, narrowable
from evocompress.models.families import FAMILIES, Family, SubLayerName, family_of, name_of
from evocompress.models.families.base import final_states, matrices_of
from evocompress.models.families.derivation.derived import Derived
from evocompress.models.families.shapes import one_way
from evocompress.models.families.stand_ins import run_block
from evocompress.testing.blocks import BlockContract
from evocompress.testing.hooks import embedding_weight, must_not_run, note_input, note_shape
from evocompress.testing.probes import (
    answer,
    assert_equal,
    linear_modules,
    random_batch,
    replace_modules,
    silence,
    tied_outside,
)
from evocompress.testing.staged import require_packages, staged
from evocompress.testing.tiny import declared, tiny_model

SUBLAYERS: tuple[SubLayerName, ...] = ("attention", "mlp")
ENCLOSING: dict[str, set[str | None]] = {
    "block": {None},
    "attention": {"block"},
    "mlp": {"block"},
    "expert": {"mlp"},
    "matrix": {*SUBLAYERS, "expert"},
}


class FamilyContract(BlockContract):
    """The checks; subclasses are collected by pytest and provide the fixture ``name``.

    Examples:
        >>> class TestMine(FamilyContract):
        ...     @pytest.fixture
        ...     def name(self) -> str:
        ...         return "llama"
    """

    @pytest.fixture
    def model(self, name: str) -> PreTrainedModel:
        """A tiny random model of the family."""
        require_packages(name)
        return tiny_model(name)

    @pytest.fixture
    def family(self, model: PreTrainedModel) -> Family:
        """What serves the model."""
        return family_of(model)

    def test_serves_its_models(self, name: str, family: Family, model: PreTrainedModel) -> None:
        """`family_of` finds the family by the model's type."""
        assert model.config.model_type == family.model_type
        assert family.task == declared(name).task
        assert name_of(family) == (name if name in FAMILIES else family.model_type)
        assert isinstance(family, type(FAMILIES[name]) if name in FAMILIES else Derived)

    def test_units_are_a_tree(self, family: Family, model: PreTrainedModel) -> None:
        """Names are unique, parents come first and enclose; sub-layers are named alike."""
        units = family.units(model)
        seen: dict[str, str] = {}
        for unit in units:
            assert unit.name not in seen
            assert (None if unit.parent is None else seen[unit.parent]) in ENCLOSING[unit.kind]
            assert unit.name.startswith(family.block_names[unit.block])
            if unit.kind in SUBLAYERS:
                assert unit.name == f"{unit.parent}.{unit.kind}"
            seen[unit.name] = unit.kind
        blocks = [unit.block for unit in units if unit.kind == "block"]
        assert blocks == list(range(len(family.blocks(model))))

    def test_roles_name_the_parts_of_a_block(self, family: Family, model: PreTrainedModel) -> None:
        """Roles are unique within a block and the same in every block of a kind."""
        roles: dict[int, list[str]] = defaultdict(list)
        for unit in family.units(model):
            roles[unit.block].append(unit.role)
        kinds: dict[Family, list[str]] = {}
        for index, of_block in roles.items():
            assert len(set(of_block)) == len(of_block)
            assert kinds.setdefault(family.at(index), of_block) == of_block

    def test_every_matrix_is_named_once(self, family: Family, model: PreTrainedModel) -> None:
        """`matrices` names all linear modules of a branch and tells how they are stored."""
        for index, block in enumerate(family.blocks(model)):
            own = family.at(index)
            if "attention" in own.sublayers and not own.attention.coupled:
                continue  # other mixers have linear modules of which they read the weights alone
            linear = {
                path: isinstance(module, Conv1D)
                for path, module in linear_modules(own, block).items()
                if not path.startswith("shortcut.")
            }
            matrices = matrices_of(own)
            named = [matrix.path for matrix in matrices]
            assert sorted(named) == sorted(linear)
            assert {m.path: m.transposed for m in matrices} == linear
            assert {m.path for m in own.matrices} <= set(named)

    def test_shapes_are_out_by_in(self, family: Family, model: PreTrainedModel) -> None:
        """A matrix unit's shape is (outputs, inputs) of its module, found by running it.

        Those of an expert that no token reaches are not run.
        """
        shapes: dict[str, tuple[int, int]] = {}
        handles = [
            model.get_submodule(unit.name).register_forward_hook(partial(note_shape, shapes, unit))
            for unit in family.units(model)
            if unit.kind == "matrix"
        ]
        family.hidden_states(model, random_batch(family, model))
        for handle in handles:
            handle.remove()
        every = {u.name: u.shape for u in family.units(model) if u.kind == "matrix"}
        assert shapes == {n: s for n, s in every.items() if n in shapes or ".experts." not in n}

    def test_rows_and_columns_tell_what_they_belong_to(
        self, family: Family, model: PreTrainedModel
    ) -> None:
        """Heads and channels add up to the shapes; one matrix of a sub-layer reads them all."""
        architecture = family.architecture(model)
        units = family.units(model)
        # Some experts read what a matrix beside them makes of the residual stream.
        beside = {u.shape[0] for u in units if u.shape and "shared" in u.rows}
        widths = {architecture.hidden, *beside}
        for unit in units:
            if unit.shape is None:
                continue
            own = family.at(unit.block)
            branch = own.attention if str(unit.parent).endswith("attention") else own.mlp
            if not branch.coupled:
                assert not unit.rows and not unit.columns
                continue
            latent = branch is own.attention and any(architecture.latents)
            lengths = axis_lengths(architecture, unit.block)
            sizes = (unit.shape[0], unit.shape[1] // unit.patch)
            for axes, size in zip((unit.rows, unit.columns), sizes, strict=True):
                if "shared" in axes:
                    continue
                if axes:
                    assert size % sum(lengths[axis] for axis in axes) == 0
                elif not staged(family) and not latent and not own.commons:
                    assert size in widths
            assert unit.bias == (model.get_submodule(unit.name).bias is not None)
            pattern = rf".*\.{branch.output.pattern}"
            last = re.fullmatch(pattern, unit.name) is not None
            assert last == (narrowable(unit.columns) and "inner" not in unit.columns)
            inner = unit.columns == ("inner",)
            assert bool(unit.rows) != bool(unit.columns) or inner or latent or own.commons

    def test_same_input_word_means_same_input(self, family: Family, model: PreTrainedModel) -> None:
        """Matrices with one `input` word read equal tensors; other words, other tensors."""
        for index, block in enumerate(family.blocks(model)):
            matrices = matrices_of(family.at(index))
            inputs: dict[str, Tensor] = {}
            handles = [
                block.get_submodule(matrix.path).register_forward_pre_hook(
                    partial(note_input, inputs, matrix.path)
                )
                for matrix in matrices
            ]
            family.hidden_states(model, random_batch(family, model))
            for handle in handles:
                handle.remove()
            run = [matrix for matrix in matrices if matrix.path in inputs or not matrix.expert]
            for one in run:
                for other in run:
                    if one.expert and other.expert not in ("", one.expert):
                        continue  # the same tokens may reach both
                    same = torch.equal(inputs[one.path], inputs[other.path])
                    assert same == (one.input == other.input), (one, other)

    def test_parameters_are_counted_exactly(self, family: Family, model: PreTrainedModel) -> None:
        """Outer, own and matrix parameters add up, in total and within each branch."""
        architecture, units = family.architecture(model), family.units(model)
        total = sum(parameter.numel() for parameter in model.parameters())
        own = sum(map(sum, architecture.own_params))
        assert architecture.outer_params + own + sum(unit.numel for unit in units) == total
        for index, block in enumerate(family.blocks(model)):
            of_block = sum(parameter.numel() for parameter in block.parameters())
            matrices = sum(unit.numel for unit in units if unit.block == index)
            kind = family.at(index)
            shared = kind.kinds[0].shared if isinstance(kind, Derived) else ()
            staying = tuple(f"{path}." for path in shared)
            outer = sum(
                p.numel() for name, p in block.named_parameters() if f"{name}.".startswith(staying)
            )
            outer += tied_outside(kind, block)
            assert sum(architecture.own_params[index]) == of_block - matrices - outer

    def test_own_parameters_are_dead_when_dropped(
        self, family: Family, model: PreTrainedModel
    ) -> None:
        """Dropping a sub-layer removes exactly its matrices and its own parameters."""
        architecture = family.architecture(model)
        for index, place in product(range(len(family.blocks(model))), range(len(SUBLAYERS))):
            sublayer, own = SUBLAYERS[place], family.at(index)
            if staged(family) and index:
                continue  # a shortcut with a matrix stays
            if sublayer not in own.sublayers:
                assert not architecture.own_params[index][place]
                continue
            block = copy.deepcopy(family.blocks(model)[index])
            before = sum(parameter.numel() for parameter in block.parameters())
            replace_modules(block, own.replacements(block, sublayer))
            after = sum(parameter.numel() for parameter in block.parameters())
            name = family.block_names[index] + ("" if own.within else f".{sublayer}")
            matrices = sum(unit.numel for unit in family.units(model).below(name))
            matrices += tied_outside(own, family.blocks(model)[index])
            gone = matrices + architecture.own_params[index][place]
            assert before - after == (0 if own.within and sublayer == "mlp" else gone)

    def test_architecture_tells_the_shape(self, family: Family, model: PreTrainedModel) -> None:
        """Widths agree with the modules, and tuples have an entry for each block."""
        architecture, layers = family.architecture(model), len(family.blocks(model))
        head, rows = model.get_output_embeddings() or getattr(model, "score", None), 0
        if head is not None:
            rows, hidden = head.weight.shape
            assert architecture.hidden == hidden
        assert architecture.vocabulary == rows
        assert architecture.tied == (head is not None and head.weight is embedding_weight(model))
        assert architecture.dtype_bytes == model.dtype.itemsize
        per_block = (
            architecture.heads,
            architecture.kv_heads,
            architecture.channels,
            architecture.windows,
        )
        assert all(len(values) == layers for values in per_block)
        if "attention" not in family.sublayers:
            assert not any(architecture.heads) and not any(architecture.kv_heads)
            return
        for unit in family.units(model):
            if unit.columns == ("query",):
                assert unit.shape and unit.shape[1] % architecture.heads[unit.block] == 0

    def test_windows_are_those_of_the_masks(self, family: Family, model: PreTrainedModel) -> None:
        """A token influences a block's output exactly within the block's window."""
        if "attention" not in family.sublayers:
            pytest.skip("blocks without attention have no windows")
        architecture = family.architecture(model)
        hidden, arguments = family.block_inputs(model, random_batch(family, model, 1))
        nudged = hidden.clone()
        nudged[:, 0] += torch.linspace(-1, 1, hidden.shape[-1])
        length = hidden.shape[1]
        for index, (block, kwargs, window) in enumerate(
            zip(family.blocks(model), arguments, architecture.windows, strict=True)
        ):
            if not family.at(index).attention.coupled:
                continue  # other mixers have no windows, though maybe kernels
            moved = (
                (run_block(block, nudged, kwargs) - run_block(block, hidden, kwargs))
                .abs()
                .amax(dim=-1)[0]
            )
            reach = length if window is None else window
            assert (moved[:reach] > 0).all()
            assert (moved[reach:] == 0).all()

    def test_a_token_sees_those_behind_it_unless_causal(
        self, family: Family, model: PreTrainedModel
    ) -> None:
        """The last token influences the first one's state in an encoder only."""
        if "attention" not in family.sublayers:
            pytest.skip("an image is one token")
        hidden, arguments = family.block_inputs(model, random_batch(family, model, 1))
        nudged = hidden.clone()
        nudged[:, -1] += torch.linspace(-1, 1, hidden.shape[-1])
        block = family.blocks(model)[0]
        moved = run_block(block, nudged, arguments[0]) - run_block(block, hidden, arguments[0])
        moved = moved[0, 0].abs().max()
        assert (moved == 0) == family.architecture(model).one_way == one_way(family, model.config)

    def test_every_sequence_is_as_long_as_it_says(
        self, family: Family, model: PreTrainedModel
    ) -> None:
        """Text has a token for each id; where all inputs are alike, their number is told."""
        batch, tokens = random_batch(family, model), family.architecture(model).tokens
        hidden, _ = family.block_inputs(model, batch)
        if staged(family):
            assert tokens == 1
            return
        assert hidden.shape[1] == (batch.shape[1] if tokens is None else tokens)
        assert (tokens is None) == family.task.reads_text

    def test_body_and_head_make_the_outputs(self, family: Family, model: PreTrainedModel) -> None:
        """The head on the hidden states gives the model's own outputs."""
        batch = random_batch(family, model)
        outputs = family.outputs(model, family.hidden_states(model, batch))
        # A mean is taken in another order by hand; logits must be the very same.
        scaled = family.logit_keys.factors or family.logit_keys.divisors
        atol = 1e-6 if family.task.compared == "embeddings" or scaled else 0
        expected = answer(family, model, batch)
        # Some classes give float32 whatever they are in, and round before the head or after.
        rtol = 0 if outputs.dtype == expected.dtype else 1e-6
        torch.testing.assert_close(outputs.to(expected.dtype), expected, rtol=rtol, atol=atol)

    def test_blocks_by_hand_make_the_hidden_states(
        self, family: Family, model: PreTrainedModel
    ) -> None:
        """`block_inputs`, then the blocks one by one and the final norm, equal the body."""
        batch = random_batch(family, model)
        blocks = list(family.blocks(model))
        hidden, arguments = family.block_inputs(model, batch)
        assert list(family.blocks(model)) == blocks
        for block, kwargs in zip(blocks, arguments, strict=True):
            hidden = run_block(block, hidden, kwargs)
        assert_equal(final_states(family, model, hidden), family.hidden_states(model, batch))

    def test_no_block_runs_for_block_inputs(self, family: Family, model: PreTrainedModel) -> None:
        """`block_inputs` costs no block's computation, whatever it is made for."""
        for block in family.blocks(model):
            block.register_forward_pre_hook(must_not_run)
        family.block_inputs(model, random_batch(family, model))

    @pytest.mark.parametrize("sublayer", SUBLAYERS)
    @pytest.mark.parametrize("index", [0, 2])
    def test_a_dropped_sublayer_adds_nothing(
        self, family: Family, model: PreTrainedModel, index: int, sublayer: SubLayerName
    ) -> None:
        """Dropping equals zeroing the sub-layer's last matrix, and changes the outputs."""
        own = family.at(index)
        if own.within or not any(matrix.sublayer == sublayer for matrix in own.matrices):
            pytest.skip(f"blocks without {sublayer}, or one that is no matrices or is shared")
        name = f"{family.block_names[index]}.{sublayer}"
        if sublayer == "attention" and not family.units(model).by_name[name].droppable:
            pytest.skip("later blocks read the keys and values of this one")
        batch, reference = random_batch(family, model), copy.deepcopy(model)
        dense = answer(family, model, batch)
        silence(own, family.blocks(reference)[index], sublayer)
        block = family.blocks(model)[index]
        replace_modules(block, own.replacements(block, sublayer))
        dropped = answer(family, model, batch)
        assert_equal(dropped, answer(family, reference, batch))
        assert (dropped - dense).abs().max() > 0.01

    def test_a_dropped_sublayer_computes_nothing(
        self, family: Family, model: PreTrainedModel
    ) -> None:
        """No matrix of a dropped sub-layer is in the block, so none can run."""
        for index, dense in enumerate(family.blocks(model)):
            own = family.at(index)
            if own.within or (staged(family) and index):
                continue  # a shortcut with a matrix stays
            for sublayer in own.sublayers:
                if "attention" in own.sublayers and not own.attention.coupled:
                    continue  # see above
                block = copy.deepcopy(dense)
                replace_modules(block, own.replacements(block, sublayer))
                left = linear_modules(own, block)
                assert len(left) == sum(m.sublayer != sublayer for m in matrices_of(own))

    def test_a_dropped_block_passes_its_input_through(
        self, family: Family, model: PreTrainedModel
    ) -> None:
        """With all sub-layers dropped a block is the identity, where units say that it can be."""
        hidden, arguments = family.block_inputs(model, random_batch(family, model))
        blocks = [unit for unit in family.units(model) if unit.kind == "block"]
        for unit, block, keywords in zip(blocks, family.blocks(model), arguments, strict=True):
            entering, hidden = hidden, run_block(block, hidden, keywords)
            if staged(family):
                assert unit.droppable == (entering.shape == hidden.shape)
            if unit.droppable:
                own = family.at(unit.block)
                for sublayer in own.sublayers:
                    replace_modules(block, own.replacements(block, sublayer))
                assert_equal(run_block(block, entering, keywords), entering)

    def test_replacements_can_be_taken_back(self, family: Family, model: PreTrainedModel) -> None:
        """Putting the former modules back gives the dense model again."""
        batch, block = random_batch(family, model), family.blocks(model)[1]
        dense = answer(family, model, batch)
        own = family.at(1)
        for sublayer in own.sublayers:
            modules = own.replacements(block, sublayer)
            former = {path: block.get_submodule(path) for path in modules}
            replace_modules(block, modules)
            replace_modules(block, former)
        assert_equal(answer(family, model, batch), dense)
