"""Families that are derived from the module tree of a model and proved by running it."""
