"""Samplers of Optuna as searchers: Gaussian processes and Parzen estimators."""
