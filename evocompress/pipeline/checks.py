"""Whether settings, space, data and library of a run fit each other and the model."""

from __future__ import annotations

from evocompress.compression.criteria import STRUCTURED
from evocompress.compression.library import check_library
from evocompress.compression.library.order import methods_named
from evocompress.compression.quantization.ggml import check_makeable
from evocompress.core.errors import ConfigError
from evocompress.core.storage import GGUF
from evocompress.evaluation.calibration.calibration import check_calibration
from evocompress.evaluation.heldout import check_lengths
from evocompress.evaluation.profile import check_table, check_timed_lengths, path_of
from evocompress.evaluation.profile.tables import ALIKE, NEW_RUN
from evocompress.evaluation.proxies import check_proxy
from evocompress.healing.adapting import check_adaptable
from evocompress.healing.packages import check_packages
from evocompress.healing.top_k import check_cacheable
from evocompress.healing.trained import LORA, SCALES
from evocompress.models.loading import require_next_token
from evocompress.pipeline.context import RunContext
from evocompress.pipeline.resolve import check_search
from evocompress.pipeline.short_healing import check_short_healing, sized_healing
from evocompress.pipeline.unmeasured_latency import unbounded
from evocompress.space.budget import check_types_counted


def check_inputs(context: RunContext) -> None:
    """Whether data, settings, space and library fit; nothing is written in the run's folder.

    A latency table that is missing is measured last: it takes longest.
    """
    check_settings(context)
    if context.wanted_levels:
        check_library(*context.library_order(), batch=context.config.calibration.micro_batch)
    else:
        context.calibration  # noqa: B018  (may refuse the data)
    if context.timed:
        _check_latency(context)


def check_settings(context: RunContext, *, search: bool = True) -> None:
    """Whether settings and space fit the model; an outline of the model is enough.

    Settings of the `search` do not count for a library or for what is done with a winner.
    """
    if context.config.model.device_memory is not None:
        _check_streamed(context, search)
    architecture = context.loaded.family.architecture(context.loaded.model)
    check_calibration(context.config.calibration, context.loaded)
    check_lengths(context.config.evaluate, architecture)
    if context.timed:
        check_timed_lengths(context.config.latency, architecture)
    if search:
        check_proxy(context.config.proxy.kind, context.loaded)
        config, tokens = unbounded(context.config), context.loaded.tokens
        objectives = check_search(config, context.untimed_space, tokens)
        check_types_counted(context.untimed_space, (*context.config.space.budget, *objectives))
        length = tokens or config.calibration.length
        heal = sized_healing(context.config, context.loaded)
        check_short_healing(config.search.heal_last, heal, length, objectives)
        if context.settings.needs_output_errors:
            _check_output_errors(context)
    _check_next_token(context, search)
    check_packages(context.config.heal)
    _check_types(context)
    check_cacheable(context.loaded, context.config.heal.top_k)
    check_adaptable(context.loaded, context.config.heal.adapt_teacher)


def _check_next_token(context: RunContext, search: bool) -> None:
    """Refuses what needs the loss of the next token, of a model that has none."""
    name = context.config.library.width_criterion
    if search and context.settings.needs_next_token:
        require_next_token(context.loaded, f"search.name={context.config.search.name}")
    if context.config.evaluate.tasks and not context.loaded.family.task.causal:
        raise ConfigError(
            f"evaluate.tasks: {context.loaded.source} is a model for "
            f"{context.loaded.family.task.name}, which answers no questions: unset it"
        )
    if context.config.space.width and "gradients" in STRUCTURED[name].needs:
        require_next_token(context.loaded, f"library.width_criterion={name}")


def _check_output_errors(context: RunContext) -> None:
    """Refuses a library without the output errors that the search goes by.

    They are measured by the inner products of the inputs, where something reads these.
    """
    space, library = context.config.space, context.config.library
    bits = space.bits
    methods = methods_named(
        library.criterion if space.sparsity else None,
        library.width_criterion if space.width else None,
        library.reconstruct,
        library.rounding,
        [kind.name for kind in bits.coarser] if bits else [],
    )
    without = []
    if (bits or space.sparsity) and "gram" not in methods.matrix_needs:
        without += [f"library.criterion={library.criterion}"] if space.sparsity else []
        types = ", ".join(kind.name for kind in bits.coarser) if bits else ""
        without += [f"library.rounding={library.rounding} to {types}"] if bits else []
    if space.width and "gram" not in methods.width_needs:
        without.append(f"library.width_criterion={library.width_criterion}")
    if without:
        raise ConfigError(
            f"search.name={context.config.search.name} goes by output errors, which the library "
            f"has where inner products of inputs are read; {' and '.join(without)} reads none: "
            "choose criterion sparsegpt, width_criterion obs_structured, rounding gptq with types "
            "of equal steps (as q4_0 or w4g64), or another search"
        )


def _check_types(context: RunContext) -> None:
    """Refuses types of weights that cannot be made here, and a healing that cannot keep them."""
    bits, heal = context.config.space.bits, context.config.heal
    through = heal.straight_through or SCALES in heal.train
    key = "straight_through" if heal.straight_through else "train=scales"
    if bits is None and through:
        raise ConfigError(
            f"heal.{key} trains what has a coarser type, and nothing has without space.bits: leave "
            "it out"
        )
    if bits is None:
        return
    if LORA in context.config.heal.train:
        raise ConfigError(
            "heal.train=lora: adapters are merged into matrices, which with space.bits keep the "
            "values of their types: train norms, biases or head"
        )
    if context.recipes:
        raise ConfigError(
            f"search.name={context.config.search.name}: it fine-tunes candidates, and trained "
            "matrices would not keep the values of their types: leave out space.bits or that"
        )
    if through and not any(kind.uniform for kind in bits.coarser):
        raise ConfigError(
            f"heal.{key} trains types with equal steps (as q4_0, q8_0 or w4g64), and space.bits "
            "has none: leave it out, or give one"
        )
    for kind in bits.coarser:
        if kind.lane == GGUF:
            check_makeable(kind)


def _check_streamed(context: RunContext, search: bool) -> None:
    """Refuses what needs the whole model on the device at once."""
    blocked = None
    if context.timed:
        blocked = "a latency in budget or objectives"
    elif search and context.recipes:
        blocked = f"search.name={context.config.search.name}, which fine-tunes candidates,"
    if blocked:
        raise ConfigError(
            f"{blocked} needs the whole model on the device: unset model.device_memory"
        )


def _check_latency(context: RunContext) -> None:
    """Whether the run's latency table is of this machine, and the bounds within it."""
    table, config, own = context.latency_table, context.config.latency, context.folder.latency
    if table and own.exists():
        check_table(table, context.loaded, config, own, remedy=NEW_RUN)
    elif table:
        # Workers may have measured it on another device than this process has.
        path = path_of(table.made, config)
        check_table(table, context.loaded, config, path, remedy=ALIKE)
    context.searcher()
