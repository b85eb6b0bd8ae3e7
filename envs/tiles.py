"""Tiles: how films draw the boards of MiniGrid and of Craftax. Numpy only; what is drawn may be a model's expectation.

Axes: K dots of a tile's side.
"""

import importlib

import numpy as np
from jaxtyping import Float, Shaped

UNSEEN, FLOOR, WALL, DOOR, KEY, BALL, BOX, GOAL, LAVA, PLAYER = 0, 1, 2, 4, 5, 6, 7, 8, 9, 10
"""Objects of MiniGrid by navix's numbers."""
GROUND = (0.13, 0.14, 0.17)
FILLS = {UNSEEN: (0, 0, 0), WALL: (0.5, 0.5, 0.5), GOAL: (0.2, 0.7, 0.25), LAVA: (0.95, 0.5, 0.1)}
OBJECT_COLOURS = np.array([
    [0.9, 0.2, 0.2], [0.25, 0.75, 0.3], [0.25, 0.45, 0.95], [0.6, 0.3, 0.8], [0.98, 0.85, 0.2], [0.6, 0.6, 0.6],
])  # fmt: skip
"""MiniGrid's red, green, blue, purple, yellow and grey."""
DOORS = ("100100100", "111111111", "111101111")  # open, closed, locked
SHAPES = {KEY: "010010011", BALL: "010111010", BOX: "111101111"}
FACING = ("100111100", "111010010", "001111001", "010010111")  # east, south, west, north


def minigrid_tiles(obs: Shaped[np.ndarray, "rows columns *n"]) -> Float[np.ndarray, "rows columns K K 3"]:
    """MiniGrid's cells, of (object, colour, state) or of the object alone; K is 3."""
    cells = np.rint(obs).astype(int).reshape(*obs.shape[:2], -1)
    return np.array([[_minigrid_tile(*cell) for cell in row] for row in cells.tolist()])


def _minigrid_tile(thing: int, colour: int = 4, state: int = 0) -> Float[np.ndarray, "K K 3"]:
    tile = np.tile(np.array(FILLS.get(thing, GROUND)), (3, 3, 1))
    shape = {DOOR: DOORS[state % 3], PLAYER: FACING[state % 4]}.get(thing, SHAPES.get(thing, "0" * 9))
    is_drawn = np.array([letter == "1" for letter in shape]).reshape(3, 3)
    tile[is_drawn] = OBJECT_COLOURS[0 if thing == PLAYER else colour % len(OBJECT_COLOURS)]
    return tile


def craftax_tiles(obs: Float[np.ndarray, " P"], own_id: str) -> Float[np.ndarray, "rows columns K K 3"]:
    """Craftax's symbolic observation: blocks with the suite's textures, a light dot for a creature or an arrow, a red
    one for the player. What is out of the light is dark. The suite makes its textures when they are first asked for."""
    classic = "Classic" in own_id
    constants = importlib.import_module(f"craftax.{'craftax_classic' if classic else 'craftax'}.constants")
    textures = (
        np.asarray(constants.load_all_textures()[constants.BLOCK_PIXEL_SIZE_AGENT]["block_textures"])[..., :3] / 255
    )
    rows, columns = constants.OBS_DIM
    blocks = len(constants.BlockType)
    behind = 0 if classic else len(constants.ItemType)  # items stand between the blocks and the creatures
    creatures = 4 if classic else 40
    wide = blocks + behind + creatures + (not classic)  # at the end, whether there is light
    cells = obs[: rows * columns * wide].reshape(rows, columns, wide)
    tiles = textures[cells[..., :blocks].argmax(-1)]
    tiles = np.where(cells[..., :blocks].max(-1)[..., None, None, None] < 0.5, 0.0, tiles)
    dot = slice(tiles.shape[2] // 3, -(tiles.shape[2] // 3))
    tiles[..., dot, dot, :] = np.where(
        cells[..., blocks + behind :][..., :creatures].max(-1)[..., None, None, None] > 0.5, 1, tiles[..., dot, dot, :]
    )
    tiles[rows // 2, columns // 2, dot, dot] = OBJECT_COLOURS[0]
    return tiles
