"""Frames: the pictures of a film. Above, what happens and what the model expects; below, error and novelty.

Boards are drawn as cells, by `Environment.tiles` if the environment has that. All other observations are drawn as lines
over time, beside a map of the environment's states if it has one.
Axes: T rows, K dots of a tile's side, P numbers of an entry.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from envs.environment import zip_entries
from stages.figures.look import BLUE, GREY, INK, wrapped
from stages.watch.boards import (
    BLANK,
    ORANGE,
    channel_span,
    channels_of,
    difference,
    is_board,
    pixel_colours,
    rgb,
)
from stages.watch.canvas import Canvas
from stages.watch.scene import Scene

PURPLE, FAINT, SHADE = "#6a3d9a", "#e4e4e4", "#fdf0e1"
WIDTH, EDGE, TOP, BODY, STRIP = 640, 16, 64, 236, 62
WINDOW = 60
"""Rows that plots over time show."""
MOST_PLOTS = 8
MOST_BESIDE = 4  # plots under a board
PLOT = 40  # height of a plot under a board
MOST_NUMBERS = 3  # of an action
LONG_TITLE = 80  # letters of a line of a title that takes two lines


class Series(NamedTuple):
    """One number of the observation over the film, [T]."""

    name: str
    truth: NDArray[np.float64]
    predicted: NDArray[np.float64]


class Layout(NamedTuple):
    """Which entry of an observation is drawn as a board, and which numbers as lines."""

    board: str | None  # name of the entry that is drawn as cells; None: there is none
    numbers: list[Series]  # drawn as lines


def draw_frames(scene: Scene, title: str) -> list[Image.Image]:
    """A picture of each row."""
    layout = layout_of(scene)
    return [_frame(scene, layout, title, t) for t in range(len(scene.error))]


def layout_of(scene: Scene) -> Layout:
    """Choose the first entry that can be drawn as cells, and of all others the numbers that change most often."""
    if scene.env.tiles is not None:
        return Layout(None, [])
    entries = list(zip_entries(scene.env.obs_space, scene.obs, scene.predicted))
    board = next((name for name, space, *_ in entries if is_board(space)), None)
    numbers = [
        Series(_label(name, index, truth.size > len(truth)), *(x.astype(np.float64) for x in pair))
        for name, _, truth, predicted in entries
        if name != board
        for index, pair in enumerate(zip(_columns(truth), _columns(predicted), strict=True))
    ]
    changes = np.array([_changes(number, scene) for number in numbers])
    most = MOST_PLOTS if board is None else min(MOST_BESIDE, int((changes > 0).sum()))
    return Layout(board, [numbers[index] for index in sorted(np.argsort(-changes, kind="stable")[:most])])


def _label(entry: str, index: int, of_several: bool) -> str:
    """What a line is called: its entry, and which of the entry's numbers it is."""
    entry = entry or "observation"  # an observation that is no dictionary has no name
    return f"{entry} {index}" if of_several else entry


def _columns(x: NDArray) -> NDArray:
    """An entry [T, ...] -> each of its numbers over time, [P, T]."""
    return x.reshape(len(x), -1).T


def _changes(number: Series, scene: Scene) -> int:
    """The number of rows in which a number differs from the row before, within episodes."""
    return int(((np.diff(number.truth) != 0) & (scene.episode_step[1:] > 0)).sum())


def _frame(scene: Scene, layout: Layout, title: str, t: int) -> Image.Image:
    strips, has_cells = 1 + (scene.novelty is not None), layout.board is not None or scene.env.tiles is not None
    beside = math.ceil(len(layout.numbers) / 2) * PLOT if has_cells else 0
    canvas = Canvas(WIDTH, TOP + BODY + beside + 18 + strips * STRIP + 10)
    _head(canvas, scene, title, t)
    if has_cells:
        _boards(canvas, scene, layout, t)
        _plots(canvas, scene, layout.numbers, t, (EDGE, TOP + BODY + 8, WIDTH - 2 * EDGE, beside))
    else:
        _lines(canvas, scene, layout, t)
    top = TOP + BODY + beside + 18
    _strip(canvas, scene, t, top, scene.error, "error of the prediction", None)
    if scene.novelty is not None:
        _strip(canvas, scene, t, top + STRIP, scene.novelty, "novelty of the action taken", PURPLE)
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


def _boards(canvas: Canvas, scene: Scene, layout: Layout, t: int) -> None:
    """What happened, what the model expects, and what it missed or made up."""
    wide = (WIDTH - 4 * EDGE) / 3
    pictures, tile = _tiles(scene, t) if layout.board is None else (_cells(scene, layout.board, t), 1)
    names = ("what happens", "what the model expects", "difference" if layout.board is not None else "what it missed")
    for index, (name, colours) in enumerate(zip(names, pictures, strict=True)):
        x0 = EDGE + index * (wide + EDGE)
        canvas.text(x0 + wide / 2, TOP + 8, name, 12, INK, "mm")
        canvas.cells((x0, TOP + 20, wide, BODY - 36), colours, tile)
    if layout.board is not None:
        middle = EDGE + 2 * (wide + EDGE) + wide / 2
        canvas.text(middle - 6, TOP + BODY - 4, "missed", 11, BLUE, "rm", bold=True)
        canvas.text(middle + 6, TOP + BODY - 4, "made up", 11, ORANGE, "lm", bold=True)


def _tiles(scene: Scene, t: int) -> tuple[list[NDArray[np.float64]], int]:
    """The three pictures as the environment draws them, and K. The third shows the tiles that were predicted wrong."""
    assert scene.env.tiles is not None
    truth, predicted = (scene.env.tiles(jax.tree.map(lambda x: x[t], obs)) for obs in (scene.obs, scene.predicted))
    missed = np.where((truth != predicted).any((2, 3, 4), keepdims=True), truth, BLANK)
    rows, columns, side = truth.shape[:3]
    pictures = [x.swapaxes(1, 2).reshape(rows * side, columns * side, 3) for x in (truth, predicted, missed)]
    return pictures, side


def _cells(scene: Scene, name: str, t: int) -> list[NDArray[np.float64]]:
    """The three pictures of the entry of this name."""
    entries = zip_entries(scene.env.obs_space, scene.obs, scene.predicted)
    space, obs, predictions = next((space, *arrays) for key, space, *arrays in entries if key == name)
    span = channel_span(space, obs)
    truth, predicted = channels_of(space, obs[t], span), channels_of(space, predictions[t], span)
    return [pixel_colours(space, truth), pixel_colours(space, predicted), difference(truth, predicted)]


# ---- lines over time -----------------------------------------------------------------------------------------------


def _lines(canvas: Canvas, scene: Scene, layout: Layout, t: int) -> None:
    """A plot of each number of the layout; a map of the states to the left where there is one."""
    x0 = float(EDGE)
    if scene.state is not None and scene.env.states is not None and scene.env.states.grid[0]:
        _map(canvas, scene, t, (EDGE, TOP + 20, 200, BODY - 24))
        canvas.text(EDGE + 100, TOP + 8, " by ".join(scene.env.states.labels), 12, INK, "mm")
        x0 += 200 + EDGE
    canvas.line([(x0, TOP + 8), (x0 + 22, TOP + 8)], INK, 2)
    canvas.text(x0 + 28, TOP + 8, "what happens", 11, INK, "lm")
    canvas.line([(x0 + 130, TOP + 8), (x0 + 152, TOP + 8)], ORANGE, 2)
    canvas.text(x0 + 158, TOP + 8, "what the model expects" + (", without looking" if x0 < 100 else ""), 11, INK, "lm")
    _plots(canvas, scene, layout.numbers, t, (x0, TOP + 20, WIDTH - EDGE - x0, BODY - 24))


def _plots(canvas: Canvas, scene: Scene, numbers: list[Series], t: int, box) -> None:
    """A plot of each number: in two columns where there are more than four, or where the box is low."""
    x0, top, width, height = box
    columns = 2 if len(numbers) > 4 or (height < BODY / 2 and len(numbers) > 1) else 1
    wide, tall = (width - (columns - 1) * EDGE) / columns, height / max(1, math.ceil(len(numbers) / columns))
    for index, number in enumerate(numbers):
        column, row = divmod(index, math.ceil(len(numbers) / columns))
        _plot(canvas, scene, t, (x0 + column * (wide + EDGE), top + row * tall, wide, tall - 8), number)


def _plot(canvas: Canvas, scene: Scene, t: int, box, number: Series) -> None:
    name, truth, predicted = number
    canvas.text(box[0] + box[2], box[1] + box[3] / 2, f"{truth[t]:.3g}", 11, GREY, "rm")
    box = x0, top, wide, tall = (box[0], box[1], box[2] - 54, box[3])
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
    canvas.text(x0 + wide - 3, top + 1, name, 9, GREY, "ra")


def _map(canvas: Canvas, scene: Scene, t: int, box) -> None:
    """The states of the environment as cells: walls, states visited so far in this episode, and the present one."""
    states = scene.env.states
    assert states is not None and scene.state is not None
    cells = np.full((states.size, 3), 0.94)
    cells[list(states.walls)] = 0.55
    visited = scene.state[t - scene.episode_step[t] : t + 1]
    cells[visited] = rgb("#a9c6e3")
    cells[visited[-1]] = rgb(BLUE)
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
    """Shade the rows that the model does not see, and draw a line where an episode begins."""
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
