"""Frames: a scene as pictures. Above what happened beside what the model expects; below error and disagreement.

Boards are drawn as boards, all else as lines over time, beside a map of the environment's states where there is one.
Axes: T rows, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from jaxtyping import PyTree
from numpy.typing import NDArray
from PIL import Image

from envs.environment import ObsSpace, zip_entries
from stages.figures.look import BLUE, GREY, INK, wrapped
from stages.watch.canvas import Canvas
from stages.watch.scene import Scene

ORANGE, PURPLE, FAINT, SHADE = "#d9730d", "#6a3d9a", "#e4e4e4", "#fdf0e1"
NIGHT = (0.11, 0.13, 0.18)
CHANNELS = np.array([
    [0.31, 0.66, 0.96], [0.98, 0.75, 0.18], [0.93, 0.36, 0.33], [0.42, 0.80, 0.47], [0.72, 0.50, 0.90],
    [0.96, 0.56, 0.75], [0.40, 0.83, 0.83], [0.80, 0.80, 0.80], [0.65, 0.45, 0.28], [0.70, 0.85, 0.25],
])  # fmt: skip
WIDTH, EDGE, TOP, BODY, STRIP = 640, 16, 64, 236, 62
WINDOW = 60
"""Rows that plots over time show."""
MOST_PLOTS = 8
MOST_NUMBERS = 3  # of an action
LONG_TITLE = 80  # letters of a line, where a title takes two


def draw_frames(scene: Scene, title: str) -> list[Image.Image]:
    """A picture of each row."""
    return [_frame(scene, title, t) for t in range(len(scene.error))]


def is_board(space: ObsSpace) -> bool:
    """Whether an observation is drawn as cells: rows and columns, and channels or classes that can be told apart."""
    return len(space.shape) in (2, 3) and space.kind != "real" and min(space.shape[:2]) > 1


def _frame(scene: Scene, title: str, t: int) -> Image.Image:
    strips = 1 + (scene.disagreement is not None)
    canvas = Canvas(WIDTH, TOP + BODY + 18 + strips * STRIP + 10)
    _head(canvas, scene, title, t)
    if (board := _board(scene)) is not None:
        _boards(canvas, *board, t)
    else:
        _lines(canvas, scene, t)
    top = TOP + BODY + 18
    _strip(canvas, scene, t, top, scene.error, "error of the prediction", None)
    if scene.disagreement is not None:
        _strip(canvas, scene, t, top + STRIP, scene.disagreement, "disagreement of the ensemble", PURPLE)
    return canvas.finished()


def _head(canvas: Canvas, scene: Scene, title: str, t: int) -> None:
    if canvas.width_of(title, 13, bold=True) <= WIDTH - 2 * EDGE:
        canvas.text(EDGE, 12, title, 13, INK, bold=True)
    else:
        for row, line in enumerate(wrapped(title, LONG_TITLE).split("\n")[:2]):
            canvas.text(EDGE, 3 + 14 * row, line, 11, INK, bold=True)
    action = action_words(scene.action[t])
    words = f"row {scene.episode_step[t]} of the episode, action {action}, reward so far {scene.score[t]:.4g}"
    canvas.text(EDGE, 35, words, 12, GREY)
    caption = "the model sees" if scene.observed[t] else f"predicts, {scene.ahead[t]} ahead"
    canvas.pill((WIDTH - EDGE - 160, 32, 160, 22), BLUE if scene.observed[t] else ORANGE)
    canvas.text(WIDTH - EDGE - 80, 43, caption, 12, "white", "mm", bold=True)


def action_words(action: NDArray | np.integer) -> str:
    """The action chosen at a row, in words: its index, its choices, or its numbers."""
    if not isinstance(action, np.ndarray) or not action.ndim:
        return str(int(action))
    rest = f" and {len(action) - MOST_NUMBERS} more" if len(action) > MOST_NUMBERS else ""
    form = "d" if np.issubdtype(action.dtype, np.integer) else ".2f"
    return ", ".join(f"{x:{form}}" for x in action[:MOST_NUMBERS]) + rest


# ---- boards --------------------------------------------------------------------------------------------------------


def _board(scene: Scene) -> tuple[ObsSpace, NDArray, NDArray[np.float32]] | None:
    """Space, truth and prediction [T, ...] of the first entry that is drawn as cells; None: there is none."""
    entries = zip_entries(scene.env.obs_space, scene.obs, scene.predicted)
    return next(((space, obs, predicted) for _, space, obs, predicted in entries if is_board(space)), None)


def _boards(canvas: Canvas, space: ObsSpace, obs: NDArray, predictions: NDArray[np.float32], t: int) -> None:
    """What happened, what the model expects, and what it missed or made up."""
    truth, predicted = channels_of(space, obs[t]), channels_of(space, predictions[t])
    wide = (WIDTH - 4 * EDGE) / 3
    panels = (
        ("what happens", pixel_colours(space, truth)),
        ("what the model expects", pixel_colours(space, predicted)),
        ("difference", _difference(truth, predicted)),
    )
    for index, (name, colours) in enumerate(panels):
        x0 = EDGE + index * (wide + EDGE)
        canvas.text(x0 + wide / 2, TOP + 8, name, 12, INK, "mm")
        canvas.cells((x0, TOP + 20, wide, BODY - 36), colours)
    middle = EDGE + 2 * (wide + EDGE) + wide / 2
    canvas.text(middle - 6, TOP + BODY - 4, "missed", 11, BLUE, "rm", bold=True)
    canvas.text(middle + 6, TOP + BODY - 4, "made up", 11, ORANGE, "lm", bold=True)


def channels_of(space: ObsSpace, obs: NDArray) -> NDArray[np.float64]:
    """An observation as [rows, columns, C] in 0..1. Of classes, the first number of each cell is drawn (the object that
    MiniGrid says is there), and class 0 is the ground."""
    rows, columns, *_ = space.shape
    if space.kind == "categorical":
        return (obs.reshape(rows, columns, -1)[..., :1] == np.arange(1, space.classes)).astype(np.float64)
    scale = 255.0 if space.kind == "image" and obs.dtype == np.uint8 else 1.0
    return obs.astype(np.float64).reshape(rows, columns, -1) / scale


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


def _difference(truth: NDArray[np.float64], predicted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Blue where something was missed, orange where something was made up, by the channel that is furthest off."""
    off = predicted - truth
    largest = np.take_along_axis(off, np.abs(off).argmax(-1)[..., None], -1)
    colours = np.where(largest > 0, _rgb(ORANGE), _rgb(BLUE))
    return np.full(3, 0.96) * (1 - np.abs(largest)) + colours * np.abs(largest)


def _rgb(colour: str) -> NDArray[np.float64]:
    return np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])


# ---- lines over time -----------------------------------------------------------------------------------------------


def _lines(canvas: Canvas, scene: Scene, t: int) -> None:
    """A plot of each number of the observation; a map of the states to the left where there is one."""
    x0 = float(EDGE)
    if scene.state is not None and scene.env.states is not None and scene.env.states.grid[0]:
        _map(canvas, scene, t, (EDGE, TOP + 20, 200, BODY - 24))
        canvas.text(EDGE + 100, TOP + 8, " by ".join(scene.env.states.labels), 12, INK, "mm")
        x0 += 200 + EDGE
    truth, predicted = _flat(scene, scene.obs), _flat(scene, scene.predicted)
    count = min(truth.shape[1], MOST_PLOTS)
    columns = 2 if count > 4 else 1
    rows, wide = math.ceil(count / columns), (WIDTH - x0 - EDGE - (columns - 1) * EDGE) / columns
    canvas.line([(x0, TOP + 8), (x0 + 22, TOP + 8)], INK, 2)
    canvas.text(x0 + 28, TOP + 8, "what happens", 11, INK, "lm")
    canvas.line([(x0 + 130, TOP + 8), (x0 + 152, TOP + 8)], ORANGE, 2)
    canvas.text(x0 + 158, TOP + 8, "what the model expects" + (", without looking" if x0 < 100 else ""), 11, INK, "lm")
    tall = (BODY - 24) / rows
    for entry in range(count):
        column, row = divmod(entry, rows)
        box = (x0 + column * (wide + EDGE), TOP + 20 + row * tall, wide, tall - 8)
        _plot(canvas, scene, t, box, truth[:, entry], predicted[:, entry], entry)


def _flat(scene: Scene, obs: PyTree[np.ndarray]) -> NDArray[np.float64]:
    """The numbers of all entries, [T, P]."""
    entries = [x.reshape(len(x), -1) for _, _, x in zip_entries(scene.env.obs_space, obs)]
    return np.concatenate(entries, 1).astype(np.float64)


def _plot(canvas: Canvas, scene: Scene, t: int, box, truth: NDArray, predicted: NDArray, entry: int) -> None:
    canvas.text(box[0], box[1] + box[3] / 2, str(entry), 11, GREY, "lm")
    canvas.text(box[0] + box[2], box[1] + box[3] / 2, f"{truth[t]:.3g}", 11, GREY, "rm")
    box = x0, top, wide, tall = (box[0] + 14, box[1], box[2] - 14 - 54, box[3])
    _ground(canvas, scene, t, box)
    both = np.concatenate([truth, predicted[~scene.observed]])
    low, high = both.min(), both.max()
    room = 0.15 * (high - low) or 0.5
    low, high = low - room, high + room

    def points(values: NDArray, rows: Iterable[int]) -> list[tuple[float, float]]:
        xs = [x0 + (row - _first(t) + 0.5) * wide / WINDOW for row in rows]
        return list(zip(xs, [top + tall * (high - values[row]) / (high - low) for row in rows], strict=True))

    for start, end in _stretches(scene.episode_step, t):
        canvas.line(points(truth, range(start, end)), INK, 2)
        blind = [i for i in range(start, end) if not scene.observed[i]]
        for piece in _runs(blind):
            canvas.line(points(predicted, piece), ORANGE, 2)


def _map(canvas: Canvas, scene: Scene, t: int, box) -> None:
    """The states of the environment as cells: walls, the way so far in this episode, and where it is."""
    states = scene.env.states
    assert states is not None and scene.state is not None
    cells = np.full((states.size, 3), 0.94)
    cells[list(states.walls)] = 0.55
    visited = scene.state[t - scene.episode_step[t] : t + 1]
    cells[visited] = _rgb("#a9c6e3")
    cells[visited[-1]] = _rgb(BLUE)
    picture = cells.reshape(*states.grid, 3)
    canvas.cells(box, picture if states.labels[0] == "row" else picture[::-1])


# ---- strips --------------------------------------------------------------------------------------------------------


def _strip(canvas: Canvas, scene: Scene, t: int, top: float, values: NDArray, name: str, colour: str | None) -> None:
    """Bars of a number over time, on the scale of the whole film."""
    canvas.text(EDGE, top, name, 11, INK)
    canvas.text(WIDTH - EDGE, top, f"{values[t]:.3g}", 11, GREY, "ra")
    box = (EDGE, top + 16, WIDTH - 2 * EDGE, STRIP - 24)
    _ground(canvas, scene, t, box)
    x0, above, wide, tall = box
    bar_width, largest = wide / WINDOW, max(float(values.max()), 1e-12)
    for i in range(_first(t), t + 1):
        height = tall * float(values[i]) / largest
        bar = (x0 + (i - _first(t)) * bar_width + 0.5, above + tall - height, bar_width - 1, height)
        canvas.box(bar, colour or (BLUE if scene.observed[i] else ORANGE))


def _ground(canvas: Canvas, scene: Scene, t: int, box) -> None:
    """Shaded where the model does not look, a line where an episode begins."""
    x0, top, wide, tall = box
    canvas.box(box, "#f7f7f7")
    bar_width = wide / WINDOW
    for i in range(_first(t), t + 1):
        x = x0 + (i - _first(t)) * bar_width
        if not scene.observed[i]:
            canvas.box((x, top, bar_width, tall), SHADE)
        if scene.episode_step[i] == 0 and i > _first(t):
            canvas.line([(x, top), (x, top + tall)], GREY, 1)


def _first(t: int) -> int:
    """The first row that plots show."""
    return max(0, t - WINDOW + 1)


def _stretches(episode_step: NDArray[np.int32], t: int) -> list[tuple[int, int]]:
    """[start, end) of each episode's rows among those shown."""
    starts = [i for i in range(_first(t), t + 1) if episode_step[i] == 0 or i == _first(t)]
    return list(zip(starts, [*starts[1:], t + 1], strict=True))


def _runs(rows: list[int]) -> list[list[int]]:
    """Consecutive rows together."""
    runs: list[list[int]] = []
    for row in rows:
        if runs and runs[-1][-1] == row - 1:
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs
