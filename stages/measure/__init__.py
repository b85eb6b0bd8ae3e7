"""Measured on the device beside training: coverage, what disagreement says of novelty, open-loop error."""
