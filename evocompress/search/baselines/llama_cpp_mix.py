"""The mixes of types that llama.cpp's own quantizer makes: what a search of bits must beat."""

from __future__ import annotations

import numpy as np
from pydantic import field_validator

from evocompress.core.arrays import Genome
from evocompress.core.errors import ConfigError
from evocompress.core.storage import GGUF, STORAGE
from evocompress.core.types import Level
from evocompress.search.base import CandidateSettings
from evocompress.search.baselines.llama_cpp_rules import MIXES, mix_types
from evocompress.search.generator_searcher import AskTell, GeneratorSearcher


class LlamaCppMix(GeneratorSearcher):
    """Gives every matrix the type that ``llama-quantize`` gives it, by the matrix's role.

    ```yaml
    space:
      bits: {types: [q8_0, q5_0, q4_0], match: ['*.v_proj']}
      budget: {weight_bytes: 0.95}
    search: {name: llama_cpp_mix, mix: Q4_K_M}
    ```

    Examples:
        >>> from evocompress.testing.examples import winner
        >>> winner(LlamaCppMix)
        {'0.self_attn.v_proj': 'q5_0', '1.self_attn.v_proj': 'q5_0',
        '2.self_attn.v_proj': 'q8_0', '3.self_attn.v_proj': 'q8_0'}
    """

    class Settings(CandidateSettings):
        """Settings of `LlamaCppMix`.

        Attributes:
            mix: llama.cpp's name, e.g. ``Q4_K_M``; the largest one within the budget if left out.
            imatrix: Whether it is the mix of a file that is made with an importance matrix, which
                some rules ask.
        """

        mix: str | None = None
        imatrix: bool = False

        @field_validator("mix")
        @classmethod
        def _known(cls, mix: str | None) -> str | None:
            if mix is not None and mix not in MIXES:
                raise ValueError(f"there is no mix {mix!r}: choose among {', '.join(MIXES)}")
            return mix

    settings: Settings

    def check(self) -> None:
        """Refuses a space that is not of llama.cpp's types alone, and mixes that it lacks."""
        levels = [level for levels in self.space.levels for level in levels]
        other = next((level for level in levels if level != Level(bits=level.bits)), None)
        if other is not None or not self.space.typed:
            has = "has no such types" if other is None else f"has '{other.key}' as well"
            raise ConfigError(
                f"search.name: llama_cpp_mix chooses types of stored weights alone, and this space "
                f"{has}: give space.bits without space.drop, space.width and space.sparsity"
            )
        lane = next(STORAGE[level.bits].lane for level in levels if level.bits)
        if lane != GGUF:
            raise ConfigError(
                "search.name: llama_cpp_mix knows llama.cpp's types, and those of space.bits are "
                "groups: give types like q4_0"
            )
        self._genome = self._chosen()

    def search(self) -> AskTell[None]:
        """The mix."""
        yield from self.select([self._genome])

    def _chosen(self) -> Genome:
        """The genome (U,) of the mix of the settings, or of the largest one within the budget."""
        mix = self.settings.mix
        if mix is not None:
            genome = self.genome_of(mix)
            if not self.space.feasible(genome[None])[0]:
                raise ConfigError(f"search.mix: {mix} takes {self._excess(genome)}")
            return genome
        found, large, lacking = [], [], []
        for name in MIXES:
            try:
                genome = self.genome_of(name)
            except ConfigError as error:
                lacking.append(str(error))
                continue
            if self.space.feasible(genome[None])[0]:
                found.append(genome)
            else:
                large.append(f"{name} takes {self._excess(genome)}")
        if not found:
            reason = (large[-1:] or lacking)[0]
            raise ConfigError(f"search.name: llama_cpp_mix has no mix for this space; {reason}")
        usage = self.space.budget_usage(np.stack(found)).max(axis=1)
        return found[int(usage.argmax())]

    def _excess(self, genome: Genome) -> str:
        """By what a genome (U,) exceeds the budget."""
        costs = self.space.costs(genome[None])
        over = [
            f"{name} {costs[name].item():,.6g} of {bound:,.6g}"
            for name, bound in self.space.budget.items()
            if costs[name].item() > bound
        ]
        return ", ".join(over)

    def genome_of(self, mix: str) -> Genome:
        """The genome (U,) of a mix.

        Raises:
            ConfigError: A matrix has a type there that it cannot have in the space.
        """
        tree = self.space.encoding.tree
        types = mix_types(mix, tree, imatrix=self.settings.imatrix)
        genome = self.space.encoding.default.copy()
        for gene, members in enumerate(self.space.encoding.members):
            wanted = {types[unit.name]: unit.name for unit in members}
            if len(wanted) > 1:
                raise ConfigError(
                    f"search.mix: {mix} has {' and '.join(wanted)} for matrices that must have one "
                    f"type: {' and '.join(wanted.values())}"
                )
            [(kind, name)] = wanted.items()
            names = [level.bits for level in self.space.levels[gene]]
            if kind not in names:
                raise ConfigError(
                    f"search.mix: {mix} stores '{name}' as {kind}, which is none of its types "
                    f"here: {', '.join(names)}; add it to space.bits.types"
                )
            genome[gene] = names.index(kind)
        return genome
