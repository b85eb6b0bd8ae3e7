"""Quiet: importing this before jax keeps XLA's banners ("Very slow compile? ... file a bug") from standard error.

XLA logs them as errors, so all of its log lines that are not fatal are silenced. Failures still reach Python as
exceptions. A TF_CPP_MIN_LOG_LEVEL that is already set is kept. jaxlib reads it once, when jax is imported.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
