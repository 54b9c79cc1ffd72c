"""How many tokens candidates are measured on, and which of them get more."""
