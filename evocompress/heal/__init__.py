"""Heals a compressed checkpoint by distilling the dense model into it (`heal`)."""

from evocompress.heal.distill import HealReport, heal

__all__ = ["HealReport", "heal"]
