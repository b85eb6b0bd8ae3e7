"""Measured on the device beside training: coverage, what the intrinsic reward says of novelty, open-loop error."""
