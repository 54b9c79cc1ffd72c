"""The default search: measured starts, steps along estimates, then a guided evolution."""
