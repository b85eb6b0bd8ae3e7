"""Quiet: importing this before jax keeps XLA's banners ("Very slow compile? ... file a bug") from standard error.

They are logged as errors, so that its log lines below fatal ones go. What fails reaches Python as an exception.
TF_CPP_MIN_LOG_LEVEL, where given, wins. jaxlib reads it once, when jax is imported: later it is too late.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
