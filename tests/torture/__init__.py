"""Attacks on the whole program: `python -m tests.torture --minutes 30`."""
