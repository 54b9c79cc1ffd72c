"""Heals a compressed checkpoint by distilling the dense model into it (`heal`).

Interface: `heal`; `tuned` fine-tunes candidates in place for searchers that ask for it.

Imported by: `evaluation`, `pipeline`.
"""

from evocompress.healing.distill import HealReport, heal

__all__ = ["HealReport", "heal"]
