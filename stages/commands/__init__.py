"""What `python run.py NAME` does with finished runs, and the pages that it writes."""
