"""Tiles by hand: MiniGrid's cells, and Craftax's view of three by three cells with textures that are made up."""

import importlib
import types

import numpy as np
import pytest

from envs.tiles import DOOR, FLOOR, GOAL, GROUND, KEY, OBJECT_COLOURS, PLAYER, WALL, craftax_tiles, minigrid_tiles


def drawn(thing, colour=4, state=0):
    """Which dots of a tile are not of the ground's colour, as the nine letters of a shape."""
    [[tile]] = minigrid_tiles(np.array([[[thing, colour, state]]]))
    return "".join("01"[int((dot != GROUND).any())] for dot in tile.reshape(9, 3))


def test_things_have_their_shapes_and_colours():
    assert drawn(FLOOR) == "0" * 9 and drawn(WALL) == drawn(GOAL) == "1" * 9
    assert drawn(KEY) == "010010011"
    assert [drawn(DOOR, state=state) for state in range(3)] == ["100100100", "111111111", "111101111"]
    [[key]] = minigrid_tiles(np.array([[[KEY, 2, 0]]]))
    np.testing.assert_array_equal(key[1, 1], OBJECT_COLOURS[2])


def test_the_player_points_where_it_faces():
    """Three dots are at its back, and one at its front."""
    offsets = np.mgrid[-1:2, -1:2].reshape(2, 9)
    for state, front in enumerate([(0, 1), (1, 0), (0, -1), (-1, 0)]):  # (down, right): east, south, west, north
        shape = np.array([letter == "1" for letter in drawn(PLAYER, 0, state)])
        edge = [shape[(offsets.T @ np.array(front)) == side].sum() for side in (1, 0, -1)]
        assert edge == [1, 1, 3], state


def test_objects_alone_and_a_models_means_are_drawn():
    board = np.array([[2.0, 1.2], [7.9, 1.0]], np.float32)
    tiles = minigrid_tiles(board)
    assert tiles.shape == (2, 2, 3, 3, 3)
    np.testing.assert_array_equal(tiles[1, 0], minigrid_tiles(np.array([[GOAL]]))[0, 0])


@pytest.mark.parametrize("own_id", ["Craftax-Classic-Symbolic-v1", "Craftax-Symbolic-v1"])
def test_craftax_has_textures_creatures_and_a_player(own_id, monkeypatch):
    blocks, items = 4, 2
    textures = np.zeros((blocks, 7, 7, 3)) + 255 * np.arange(blocks)[:, None, None, None] / 10
    constants = types.SimpleNamespace(
        load_all_textures=lambda: {7: {"block_textures": textures}}, BLOCK_PIXEL_SIZE_AGENT=7, OBS_DIM=(3, 3),
        BlockType=range(blocks), ItemType=range(items),
    )  # fmt: skip
    monkeypatch.setattr(importlib, "import_module", lambda name: constants)
    classic = "Classic" in own_id
    wide = blocks + (4 if classic else items + 40 + 1)
    cells = np.zeros((3, 3, wide))
    cells[..., 3] = 0.9  # of the last block everywhere
    cells[0, 0], cells[0, 1, 2] = 0, 1.5  # no light; another block
    cells[2, 2, blocks + (0 if classic else items)] = 1  # a creature
    if not classic:
        cells[1, 0, blocks], cells[..., -1] = 1, 1  # an item, and light, are no creatures
    tiles = craftax_tiles(np.append(cells.ravel(), np.ones(5)), own_id)
    assert tiles.shape == (3, 3, 7, 7, 3)
    np.testing.assert_allclose(tiles[:, :, 0, 0, 0], [[0, 0.2, 0.3], [0.3] * 3, [0.3] * 3])
    centres = np.full((3, 3, 3), 0.3)
    centres[0, 0], centres[0, 1], centres[2, 2], centres[1, 1] = 0, 0.2, 1, OBJECT_COLOURS[0]
    np.testing.assert_allclose(tiles[:, :, 3, 3], centres)
