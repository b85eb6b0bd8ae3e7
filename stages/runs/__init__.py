"""The host's side of a run: what is compiled for how many seeds, what is logged, where it is kept."""
