"""The training loop of run.py and of the library: rounds, phases, chunks, checkpoints, stops."""
