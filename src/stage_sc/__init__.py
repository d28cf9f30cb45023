"""Spatial niches of tissue, the same names on every slide."""
