"""Families that are derived from the module tree of a model and proved by running it."""

# The parts of a family are declared there, and it makes derived ones: it has to come first.
import evocompress.models.families  # noqa: F401
