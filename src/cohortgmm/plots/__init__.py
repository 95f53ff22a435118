"""Figures for judging the fits: each function takes tables or models and returns a matplotlib Figure."""
