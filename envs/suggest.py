"""Suggest: for an error message, the known names closest to one that is not known."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """Return "did you mean A or B?" with the names of `known` closest to `name`, three at most; "" if none is close.

    Args:
        cutoff: least similarity, of difflib's ratio from 0 to 1. Capital letters count as small ones.
    """
    by_lower = {known_name.lower(): known_name for known_name in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=cutoff)
    return f"did you mean {' or '.join(by_lower[match] for match in close)}?" if close else ""
