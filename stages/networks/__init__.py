"""What the stages are made of: layers, heads, distributions."""
