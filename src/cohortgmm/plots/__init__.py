"""Figures that say whether to believe the fits: each a function from tables or models to a matplotlib Figure."""
