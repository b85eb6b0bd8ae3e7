"""Boards: observations of rows and columns as coloured cells.

Axes: T rows of a film, C channels.
"""

import numpy as np
from numpy.typing import NDArray

from envs.environment import ObsSpace
from stages.figures.look import BLUE

ORANGE = "#d9730d"
NIGHT, BLANK = (0.11, 0.13, 0.18), 0.96
CHANNELS = np.array([
    [0.31, 0.66, 0.96], [0.98, 0.75, 0.18], [0.93, 0.36, 0.33], [0.42, 0.80, 0.47], [0.72, 0.50, 0.90],
    [0.96, 0.56, 0.75], [0.40, 0.83, 0.83], [0.80, 0.80, 0.80], [0.65, 0.45, 0.28], [0.70, 0.85, 0.25],
])  # fmt: skip
MOST_CHANNELS = len(CHANNELS)
"""Of real numbers that are drawn as a board."""
Span = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Least and greatest number of each channel, [C]."""
UNIT: Span = np.zeros(1), np.ones(1)


def is_board(space: ObsSpace) -> bool:
    """Whether an observation is drawn as cells: it has rows and columns; real numbers also channels, ten at most."""
    if len(space.shape) not in (2, 3) or min(space.shape[:2]) < 2:
        return False
    return space.kind != "real" or (len(space.shape) == 3 and space.shape[2] <= MOST_CHANNELS)


def channel_span(space: ObsSpace, obs: NDArray) -> Span:
    """The span over rows [T, ...]; (0, 1) of what is no real number."""
    if space.kind != "real":
        return UNIT
    flat = obs.astype(np.float64).reshape(-1, *space.shape[2:])
    return flat.min(0), flat.max(0)


def channels_of(space: ObsSpace, obs: NDArray, span: Span = UNIT) -> NDArray[np.float64]:
    """An observation as [rows, columns, C] in 0..1. Of classes, the first number of each cell is drawn, and class 0 is
    the ground; real numbers by where they are in the `span` of their channel."""
    rows, columns, *_ = space.shape
    if space.kind == "categorical":
        return (obs.reshape(rows, columns, -1)[..., :1] == np.arange(1, space.classes)).astype(np.float64)
    scale = 255.0 if space.kind == "image" and obs.dtype == np.uint8 else 1.0
    channels = obs.astype(np.float64).reshape(rows, columns, -1) / scale
    low, high = span
    return np.clip((channels - low) / np.where(high > low, high - low, 1.0), 0.0, 1.0)


def pixel_colours(space: ObsSpace, channels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Channels [rows, columns, C] as colours [rows, columns, 3]: an image of three channels has its own."""
    return channels if space.kind == "image" and channels.shape[-1] == 3 else painted(channels)


def painted(channels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Channels [rows, columns, C] painted over each other, each in its colour and as strong as it is sure."""
    picture = np.broadcast_to(NIGHT, (*channels.shape[:2], 3)).copy()
    for channel in range(channels.shape[-1]):
        share = channels[..., channel, None]
        picture = picture * (1 - share) + CHANNELS[channel % len(CHANNELS)] * share
    return picture


def difference(truth: NDArray[np.float64], predicted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Blue where something was missed, orange where something was made up, by the channel that is furthest off."""
    off = predicted - truth
    largest = np.take_along_axis(off, np.abs(off).argmax(-1)[..., None], -1)
    colours = np.where(largest > 0, rgb(ORANGE), rgb(BLUE))
    return np.full(3, BLANK) * (1 - np.abs(largest)) + colours * np.abs(largest)


def rgb(colour: str) -> NDArray[np.float64]:
    return np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
