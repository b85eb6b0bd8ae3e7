"""All pictures of runs, drawn with matplotlib."""
