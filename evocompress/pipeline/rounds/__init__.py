"""Search and healing in turns, each of which cuts a part of the budget.

Interface: `make_rounds`.
"""

from evocompress.pipeline.rounds.folder import RoundsFolder
from evocompress.pipeline.rounds.making import Stages, make_rounds

__all__ = ["RoundsFolder", "Stages", "make_rounds"]
