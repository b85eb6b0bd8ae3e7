"""What is made of results: comparisons, tables, advice, copies for other programs."""
