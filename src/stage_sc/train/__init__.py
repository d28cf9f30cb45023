"""Training: the starting point, the two stages, and health figures."""
