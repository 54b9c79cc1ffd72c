"""Evolutionary searches: EvoPress, and the fronts of NSGA-II, NSGA-III and MOEA/D."""
