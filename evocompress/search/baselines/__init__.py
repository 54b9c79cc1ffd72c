"""Published heuristics and simple searches, which the others must beat."""
