"""How precisely matrices are stored: types, grids, and rounding to them."""
