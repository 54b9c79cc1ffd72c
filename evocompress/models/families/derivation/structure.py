"""The sub-layers of a block, read off its modules and what they are given in a forward pass.

A *core* is the module of a sub-layer that has its matrices; where tokens are mixed in it, the
sub-layer is the attention (or whatever else mixes tokens), otherwise the MLP. Around the cores lie
norms: each belongs to the core that reads it, or that it reads.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from evocompress.core.errors import one_line
from evocompress.models.families.branches import SubLayerName
from evocompress.models.families.derivation.remainder import remainder
from evocompress.models.families.derivation.residual_branch import ResidualBranch
from evocompress.models.families.derivation.stream import (
    LINEAR,
    Adding,
    has_matrix,
    is_norm,
    is_sum,
    parts_of,
    stream_norms,
)
from evocompress.models.families.derivation.tracing import (
    FAILURES,
    Call,
    TracedBlock,
    first_tensor,
    like,
    mixes_tokens,
    moved_positions,
    output_changed,
    replaced,
    with_nudge,
)


class Unclear(Exception):
    """A model is built in a way that is not understood; the message says which part and how."""


@dataclass(frozen=True)
class BlockStructure:
    """A block.

    Attributes:
        branches: Its sub-layers in order.
        shared: What stays where they are removed: norms that both read, other modules, and
            parameters of the block itself.
        remainder: Why the block is not the identity without them; empty where it is.
    """

    branches: tuple[ResidualBranch, ...]
    shared: tuple[str, ...]
    remainder: str = ""


def structure(example: TracedBlock) -> BlockStructure:
    """The sub-layers of a block: of each kind the core with the most parameters.

    Raises:
        Unclear: A sub-layer cannot be taken out of it.
    """
    parts = parts_of(example)
    children, loose = parts.modules, parts.loose
    calls = example.calls(children)
    cores = _cores({path: children[path] for path in calls}, calls, parts.adding)
    if not cores:
        raise Unclear("a block has no matrices")
    idle = [p for p, m in children.items() if p not in calls and any(True for _ in m.parameters())]
    if idle:
        raise Unclear(f"a block has modules that are not run ({', '.join(idle)})")
    branches = [
        _adding(calls, core, parts.adding[core[0]])
        if core[0] in parts.adding
        else _branch(example, children, core, calls)
        for core in cores
    ]
    largest = {
        branch.kind: branch for branch in sorted(branches, key=lambda b: _size(example, b.core))
    }
    norms = [path for path in calls if is_norm(children[path])]
    chosen = [
        _with_others(branch, branches, calls, norms)
        for branch in branches
        if branch in largest.values()
    ]
    taken = {path for branch in chosen for path in branch.cores}
    others = [path for core in cores for path in core if path not in taken]
    ends = [branch.core[-1] for branch in chosen]
    after = stream_norms(example, calls, norms, ends, parts.adding)
    chosen = [replace(branch, norm_after=after.get(branch.core[-1], "")) for branch in chosen]
    found = _with_norms(children, chosen, others, loose, calls)
    proven = [_proven(example, branch) for branch in found.branches]
    for branch in proven:
        _check_mixers(example, branch, proven)
    staying = {path for branch in found.branches for path in branch.before} - {
        path for branch in proven for path in branch.before
    }
    rest = remainder(example, proven)
    return BlockStructure(tuple(proven), (*found.shared, *sorted(staying)), rest)


def _proven(example: TracedBlock, branch: ResidualBranch) -> ResidualBranch:
    """A branch that can be taken out, in the first form in which it can.

    Its norms may be the residual stream's too, and stay then. Where a block asks whether a part is
    of the class that yields several things, what stands for it must yield a tensor alone.

    Raises:
        Unclear: It cannot be taken out; the message is that of the whole branch.
    """
    forms = [branch]
    forms += [replace(branch, before=())] if branch.before else []
    forms += [replace(one, among=0) for one in forms if branch.among]
    reasons = []
    for form in forms:
        try:
            _check_removal(example, form)
        except Unclear as reason:
            reasons.append(reason)
        else:
            return form
    raise reasons[0]


def _with_others(
    branch: ResidualBranch,
    branches: Iterable[ResidualBranch],
    calls: Mapping[str, Call],
    norms: Iterable[str],
) -> ResidualBranch:
    """A branch with those that go with it: all that mix tokens, or MLPs that read the same.

    What an MLP reads may have been normed, each time by another norm.
    """
    alike = [other for other in branches if other.kind == branch.kind and other != branch]
    if branch.kind == "mlp":
        before = {id(calls[path].first): calls[path].tensors[0] for path in norms}
        read = {one.core: calls[one.core[0]].tensors[0] for one in (branch, *alike)}
        state = {core: before.get(id(given), given) for core, given in read.items()}
        own = read[branch.core], state[branch.core]
        alike = [
            other
            for other in alike
            if read[other.core] is own[0] or _same_values(state[other.core], own[1])
        ]
    return replace(branch, beside=tuple(alike))


def _check_mixers(
    example: TracedBlock, branch: ResidualBranch, branches: Iterable[ResidualBranch]
) -> None:
    """Where several mixers of tokens are removed, the other sub-layers must still do something."""
    if branch.kind == "mlp" or not branch.beside:
        return
    for other in (other for other in branches if other is not branch):
        with replaced(example.block, branch.removal(example.block)):
            before = example.run()
            with replaced(example.block, other.removal(example.block)):
                after = example.run()
        if torch.equal(before, after):
            places = ", ".join(branch.cores)
            raise Unclear(f"tokens are mixed at several places of a block ({places})")


def _size(example: TracedBlock, core: Sequence[str]) -> int:
    modules = map(example.block.get_submodule, core)
    return sum(p.numel() for module in modules for p in module.parameters())


def _cores(
    children: Mapping[str, nn.Module], calls: Mapping[str, Call], adding: Collection[str]
) -> list[tuple[str, ...]]:
    """The modules with matrices in order; one that reads what another yields is of its core.

    So are linear ones that follow each other, with what lies between them. What one yields that
    makes the residual addition itself is the stream.
    """
    cores: list[tuple[str, ...]] = []
    between: tuple[str, ...] = ()
    for path, module in children.items():
        if not has_matrix(module):
            between = () if is_norm(module) else (*between, path)
            continue
        if isinstance(module, LINEAR) and cores and isinstance(children[cores[-1][0]], LINEAR):
            cores[-1] = (*cores[-1], *between, path)
        elif (
            cores
            and cores[-1][-1] not in adding
            and _follows(calls[path], calls[cores[-1][-1]], children[cores[-1][-1]])
        ):
            cores[-1] = (*cores[-1], path)
        else:
            cores.append((path,))
        between = ()
    return cores


def _follows(call: Call, former: Call, module: nn.Module) -> bool:
    """Whether a module reads what a former one yields; some norms have matrices and are none."""
    named = type(module).__name__.lower().endswith("norm")  # "PreLayerNormIntermediate" is none
    return not named and next(iter(call.tensors), None) is former.first


def _adding(calls: Mapping[str, Call], core: tuple[str, ...], own: Adding) -> ResidualBranch:
    """An attention that adds to the stream, and norms the sum, itself."""
    output = calls[core[0]].output
    among = len(output) if isinstance(output, tuple) else 0
    return ResidualBranch(
        "attention", core, among=among, residual=own.residual, norm_within=own.norm
    )


def _branch(
    example: TracedBlock,
    children: Mapping[str, nn.Module],
    core: tuple[str, ...],
    calls: Mapping[str, Call],
) -> ResidualBranch:
    """A core without its norms."""
    call = calls[core[0]]
    # Others become the identity, which takes one thing and gives one.
    several = (p for p in core if isinstance(calls[p].output, tuple) or len(calls[p].arguments) > 1)
    many = next(several, core[-1])
    found = ResidualBranch(
        "mlp",
        core,
        among=len(calls[many].output) if isinstance(calls[many].output, tuple) else 0,
        first_of_many="" if many == core[-1] else many,
    )
    hidden = next(
        (name for name, value in call.arguments.items() if like(value, example.hidden)), None
    )
    if hidden is None or (len(core) > 1 and isinstance(children[core[0]], LINEAR)):
        return found
    kind: SubLayerName = "attention" if mixes_tokens(children[core[0]], call, hidden) else "mlp"
    residual = _residual(children[core[0]], call, hidden) if len(core) == 1 else None
    return replace(found, kind=kind, residual=residual)


def _residual(core: nn.Module, call: Call, hidden: str) -> tuple[int, str] | None:
    """The argument beside the hidden state that passes through a core, to which it adds."""
    before = first_tensor(core(**call.arguments))
    for place, (name, value) in enumerate(call.arguments.items()):
        if name != hidden and like(value, before):
            arguments = with_nudge(call, name)
            change = first_tensor(core(**arguments)) - before
            if not any(moved_positions(change, arguments[name] - value)):
                return place, name
    return None


def _with_norms(
    children: Mapping[str, nn.Module],
    branches: Sequence[ResidualBranch],
    others: Sequence[str],
    loose: Sequence[str],
    calls: Mapping[str, Call],
) -> BlockStructure:
    """Each norm given to the core that reads it, or that it reads."""
    order = list(calls)
    inner = {path for branch in branches for path in (*branch.cores, branch.norm_after)}
    inner |= {*others}
    found, shared = {branch.kind: branch for branch in branches}, [*others, *loose]
    for path in (path for path in order if path not in inner and is_norm(children[path])):
        firsts = [(b, (b.core[0], *(other.core[0] for other in b.beside))) for b in branches]
        made, given = calls[path].first, calls[path].tensors[0]
        reading = [b for b, cores in firsts if any(_reads(calls[core], made) for core in cores)]
        read = [b for b in found.values() if _ends_in(b, given, calls)]
        if len(reading) == 1 and not any(_reads(calls[o], calls[path].first) for o in others):
            own = found[reading[0].kind]
            found[own.kind] = replace(own, before=(*own.before, path))
        elif len(read) == 1:
            found[read[0].kind] = _followed_by(read[0], path, given, calls)
        else:
            shared.append(path)
    return BlockStructure(tuple(found.values()), tuple(shared))


def _ends_in(branch: ResidualBranch, given: Tensor, calls: Mapping[str, Call]) -> bool:
    """Whether a tensor is what a branch yields, a part of that, or the sum of two parts."""
    parts = [calls[end].first for end in _ends(branch)]
    if any(given is part or _same_values(given, part) for part in parts):
        return True
    normed = [calls[path].first for one in (branch, *branch.beside) for path in one.after[-1:]]
    return is_sum(given, normed, normed)


def _ends(branch: ResidualBranch) -> list[str]:
    """The last modules of a branch and of those beside it."""
    return [one.core[-1] for one in (branch, *branch.beside)]


def _followed_by(
    branch: ResidualBranch, norm: str, given: Tensor, calls: Mapping[str, Call]
) -> ResidualBranch:
    """A branch with a norm of what it yields; one beside it has that of its own output."""
    beside = [
        replace(one, after=(*one.after, norm))
        if _same_values(given, calls[one.core[-1]].first)
        else one
        for one in branch.beside
    ]
    if tuple(beside) != branch.beside:
        return replace(branch, beside=tuple(beside))
    return replace(branch, after=(*branch.after, norm))


def _same_values(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same values, whatever their shapes."""
    return one.dtype == other.dtype and torch.equal(one.flatten(), other.flatten())


def _reads(call: Call, tensor: Tensor) -> bool:
    return any(given is tensor for given in call.tensors)


def _check_removal(example: TracedBlock, branch: ResidualBranch) -> None:
    """Without a branch the block must compute what it does where that yields zero."""
    own, core = branch.removal(example.block), branch.core[0]
    output = example.calls([core])[core].output
    with ExitStack() as stack:
        for each in (branch, *branch.beside):
            last = each.after[-1] if each.after else each.core[-1]
            stack.enter_context(
                replaced(example.block, {last: own[last]})
                if each.residual
                else output_changed(example.block.get_submodule(last), _zeroed)
            )
        norm = [branch.norm_after] if branch.norm_after else []
        stack.enter_context(replaced(example.block, {path: own[path] for path in norm}))
        expected = example.run()
    with replaced(example.block, own):
        try:
            found = example.run()
        except FAILURES as error:
            why = f"a block does not run without its {core} ({one_line(error)})"
            if isinstance(output, list):
                why = f"{core} yields a list, and a stand-in for it yields a tensor or a tuple"
            raise Unclear(why) from None
    if not torch.equal(found, expected):
        raise Unclear(f"a block without its {core} is not the one where that is zero")


def _zeroed(output: Any) -> Any:
    """A module's output, with all of its tensors at zero."""
    if isinstance(output, Tensor):
        return torch.zeros_like(output)
    return tuple(map(_zeroed, output)) if isinstance(output, tuple) else output
