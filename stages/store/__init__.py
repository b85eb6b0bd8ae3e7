"""What a run keeps: its folder, its checkpoints, and agents read from them again."""
