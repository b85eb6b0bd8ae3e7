"""Scales: the returns of an episode between which an environment's scores lie, where they are known exactly."""

from collections.abc import Mapping

# Lowest and highest expected return, of the environment's defaults. Source: gymnax 1.0.1's own code.
SCALES: Mapping[str, tuple[float, float]] = {
    "CartPole-v1": (0.0, 500.0),
    "Catch-bsuite": (-1.0, 1.0),
    "DeepSea-bsuite": (0.0, 0.99),  # never to the right; always, which costs 0.01
    "DiscountingChain-bsuite": (0.0, 1.1),
    "FourRooms-misc": (0.0, 1.0),
    "MemoryChain-bsuite": (-1.0, 1.0),
    "SimpleBandit-bsuite": (0.0, 1.0),
    "UmbrellaChain-bsuite": (-1.0, 1.0),  # what it adds at random is 0 on average
}
HARMLESS = {"size", "rows", "columns", "action_map_per_seed", "rescale_observations", "num_bits", "n_distractor"}
"""Settings that change no scale."""


def scale_of(name: str, settings: Mapping[str, object]) -> tuple[float, float] | None:
    """Lowest and highest return of an environment with these settings; None where they are not known."""
    return SCALES.get(name) if settings.keys() <= HARMLESS else None
