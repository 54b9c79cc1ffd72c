"""Heals a compressed checkpoint by distilling the dense model into it.

`distill` is the training, `averaging` makes one of several, `cycles` goes on while it pays,
`state` is what a resumed one goes on from, `student` reads and writes the checkpoint, `trained`
says what has gradients, `masters` keep zeros zero. `tuned` fine-tunes candidates for searchers
that ask for it. `targets` is what a student is held against, `top_k` keeps a teacher's on disk,
`absent` takes a model's blocks out of memory, `adapting` trains the teacher first.

Interface: `heal`, `heal_in_cycles`, `adapt_teacher`, `evocompress.healing.top_k.row_bytes`,
`evocompress.healing.tuned.fine_tunings`.

Imported by: `evaluation`, `pipeline`.
"""

from evocompress.healing.adapting import adapt_teacher
from evocompress.healing.averaging import heal
from evocompress.healing.cycles import heal_in_cycles
from evocompress.healing.distill import HealReport

__all__ = ["HealReport", "adapt_teacher", "heal", "heal_in_cycles"]
