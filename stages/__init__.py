"""The pipeline, one file per stage; each imports only from the layers below it (tests/test_layers.py)."""
