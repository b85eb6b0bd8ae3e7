"""Trained agents loaded from a run's folder, scored, filmed and copied: one tiny run for all, and pictures by hand."""

import collections
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import run
from envs.environment import DictSpace, Environment, ObsSpace
from stages import library
from stages.cli.processes import Processes
from stages.cli.saved_settings import settings_of
from stages.commands.command import command
from stages.config import ConfigError, Hypers
from stages.figures.look import wrapped
from stages.results.read import read_runs
from stages.store.checkpoint import CheckpointId, Checkpoints
from stages.store.files import RunFolderError
from stages.store.fingerprint import COMPUTATION, spaces_of
from stages.store.load import Part, load_run
from stages.sweep import start
from stages.watch.boards import CHANNELS, NIGHT, channel_span, channels_of, is_board, painted, pixel_colours
from stages.watch.canvas import SCALE, Canvas, write_gif
from stages.watch.frames import BODY, LONG_TITLE, WIDTH, action_words, draw_frames, layout_of
from stages.watch.scene import Scene
from stages.watch.scores import notes
from tests.bench.kills import arrays
from tests.conftest import tree_equal
from tests.runs import MIXED

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def whole(compiled_once, recorded):
    """A run of two rounds: seeds 5 and 6, and seed 7 beside padding."""
    return recorded(*MIXED)[0]


@pytest.fixture
def folder(whole, tmp_path, monkeypatch):
    """The run, to be spoilt. The tests' jax has started."""
    monkeypatch.setattr(start, "start_jax", lambda: None)
    return shutil.copytree(whole, tmp_path / "copy")


def refused(capsys, *words):
    """The command ends with one line and code 2; that line."""
    assert command([str(word) for word in words]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("run.py: error: ")
    return line


def edit(folder, **changes):
    """Change entries of config.json."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def listed(folder):
    return {(str(path), path.stat().st_mtime_ns) for path in folder.rglob("*")}


# ---- load ----------------------------------------------------------------------------------------------------------


def test_config_json_gives_the_settings_back(whole):
    arguments = run.parse(MIXED)
    saved = json.loads((whole / "config.json").read_text())
    assert settings_of(saved) == (arguments.config, arguments.hypers)
    for wrong in ({"config": {**saved["config"], "new": 1}}, {"hypers": {"lr": 1, "x": 2}}, {"config": {"env": "x"}}):
        with pytest.raises(ConfigError, match="another version"):
            settings_of(saved | wrong)


def test_all_seeds_come_back_and_nothing_in_the_folder_is_touched(folder):
    partial = folder / "checkpoints" / "round-0000" / "process-0" / "9.orbax-checkpoint-tmp"
    partial.mkdir()  # as a run at work has it
    before = listed(folder)
    loaded = load_run(folder)
    assert [group.seeds for group in loaded.groups] == [[5, 6], [7]] and loaded.missing == []
    assert all(group.finished and group.diverged == {} and group.step >= 40 for group in loaded.groups)
    assert (
        loaded.groups[1].hypers.lr.shape == (1,)
        and loaded.groups[0].agent.model.rssm.from_deter.norm.scale.shape[0] == 2
    )
    assert listed(folder) == before


def test_as_many_episodes_as_the_run_evaluated_give_its_scores(folder, capsys):
    assert command(["eval", str(folder), "--episodes", "2"]) == 0
    said = capsys.readouterr()
    assert "interquartile mean" in said.out and "rows ahead" in said.out and said.err == ""
    assert "only episodes count that go on behind the 5 rows" in said.out
    summary, result = (json.loads((folder / f"{name}.json").read_text()) for name in ("summary", "eval"))
    np.testing.assert_allclose(result["score"], summary["score"], rtol=1e-6)
    assert result["seeds"] == [5, 6, 7] and result["finished"] and result["length"] == [5.0, 5.0, 5.0]
    assert result["iqm"] == pytest.approx(summary["iqm"])
    assert len(result["expected_score"]) == 3 and np.isfinite(result["expected_score"]).all()
    assert "expected" in said.out
    # Episodes of Deep Sea have 5 rows here: all of them are seen.
    assert result["prediction"]["episodes"] == [[0, 0, 0]] * 3


def test_what_is_not_finished_is_said(folder, capsys):
    shutil.rmtree(folder / "checkpoints" / "round-0001")
    config = json.loads((folder / "config.json").read_text())
    edit(folder, config=config["config"] | {"steps": 1000})
    assert command(["eval", str(folder), "--episodes", "1", "--policy", "random"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "of 1,000 steps" in lines[0] and "seed 7: no checkpoint" in lines[1]
    result = json.loads((folder / "eval.json").read_text())
    assert result["missing"] == [7] and not result["finished"] and result["seeds"] == [5, 6]


def test_what_cannot_be_loaded_says_so_in_one_line(folder, tmp_path, capsys):
    assert "is no run's folder" in refused(capsys, "eval", tmp_path / "nothing")
    assert "--episodes" in refused(capsys, "eval", folder, "--episodes", "0")
    assert "--seed 9" in refused(capsys, "video", folder, "--seed", "9")
    for file in (folder / "checkpoints" / "round-0000").rglob("*"):
        if file.is_file() and "ocdbt" in str(file):
            file.write_bytes(b"spoilt")
    assert "cannot be read" in refused(capsys, "eval", folder)
    shutil.rmtree(folder / "checkpoints")
    assert "holds no checkpoint" in refused(capsys, "video", folder)
    edit(folder, checkpoint_keep=0)
    assert "--checkpoint-keep 0" in refused(capsys, "eval", folder)
    edit(folder, config={})
    assert "another version" in refused(capsys, "eval", folder)


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_read_again(folder, tmp_path, monkeypatch):
    read, reads = Checkpoints.progress, []

    def replaced(checkpoints, checkpoint):
        """The run at work keeps one checkpoint, and has a newer one by now; `stays` of them stay long enough."""
        path = checkpoints._path(checkpoint)
        reads.append(checkpoint.step)
        if len(reads) <= fast:
            path.rename(path.with_name(str(checkpoint.step + 1)))
        return read(checkpoints, checkpoint)

    monkeypatch.setattr(Checkpoints, "progress", replaced)
    fast = 3
    first, second = load_run(folder).groups
    assert first.seeds == [5, 6] and second.seeds == [7] and first.step == reads[0] + 3
    reads.clear()
    fast = 1000
    with pytest.raises(RunFolderError, match=r"at work .* replaces its checkpoints faster .*--checkpoint-keep"):
        load_run(folder)


def test_a_picture_is_not_written_over_a_device(folder, tmp_path, capsys):
    (tmp_path / "device.gif").symlink_to("/dev/full")
    line = refused(capsys, "video", folder, "--rows", "2", "--out", tmp_path / "device.gif")
    assert "no regular file" in line and "choose another --out" in line and Path("/dev/full").is_char_device()


def test_a_film_is_a_gif(tmp_path, capsys):
    assert "--out must end in .gif, not 'film.mp4'" in refused(capsys, "video", tmp_path, "--out", "film.mp4")


def test_a_command_names_no_flag_that_it_does_not_have(folder, capsys):
    (folder / "eval.json").mkdir()
    assert "choose another folder" in (line := refused(capsys, "eval", folder, "--episodes", "1")) and "--" not in line


def test_a_folder_decides_on_no_code_that_is_imported(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "foreign.py").write_text(
        f"import pathlib; pathlib.Path({str(tmp_path / 'called')!r}).touch()\ndef make(): pass\n"
    )
    config = json.loads((folder / "config.json").read_text())["config"]
    looks = [["eval", folder], ["video", folder], ["export", folder, "--out", tmp_path / "out"]]
    for env, words in (("foreign:make", "give --trust"), ("os:getcwd", "standard library")):
        edit(folder, config=config | {"env": env, "env_args": []})
        for look in looks:
            assert words in refused(capsys, *look)
        with pytest.raises(ConfigError, match=words):
            library.load(folder)
    assert "standard library" in refused(capsys, "eval", folder, "--trust")
    assert not (tmp_path / "called").exists()
    edit(folder, config=config | {"env": "foreign:make", "env_args": []})
    assert "foreign:make" in refused(capsys, "eval", folder, "--trust")
    assert (tmp_path / "called").exists()


def test_a_run_from_before_a_hyperparameter_has_its_default(folder, tmp_path):
    [group, _] = load_run(folder).groups
    older = collections.namedtuple("Older", [name for name in vars(group.hypers) if name != "lam"])
    hypers = older(*(getattr(group.hypers, name) for name in older._fields))
    checkpoints, round = Checkpoints(tmp_path / "older", Processes(), keep=1), {"seeds": [5, 6], "mine": [5, 6]}
    state = (Part(group.agent, hypers, group.env_params, np.zeros(2, np.int32)),)
    checkpoints.save(CheckpointId(0, group.step), state, {"rounds": [{"round": round, "phase": 0}]})
    checkpoints.close()
    saved = json.loads((folder / "config.json").read_text())
    del saved["hypers"]["lam"]
    (tmp_path / "older" / "config.json").write_text(json.dumps(saved))
    [loaded] = load_run(tmp_path / "older").groups
    np.testing.assert_array_equal(loaded.hypers.lam, np.float32(Hypers().lam))
    assert tree_equal(loaded.agent, group.agent)


def test_a_seed_that_diverged_is_said(whole):
    loaded = load_run(whole)
    groups = [dataclasses.replace(loaded.groups[0], diverged={6: 20}), loaded.groups[1]]
    [line] = notes(loaded._replace(groups=groups))
    assert "seed 6 diverged at step 20" in line


def test_an_environment_whose_code_has_changed_is_said(whole):
    loaded = load_run(whole)
    groups = [dataclasses.replace(group, environment={COMPUTATION: "another"}) for group in loaded.groups]
    assert notes(loaded) == []
    [line] = notes(loaded._replace(groups=groups))
    assert "the environment's code, or jax, has changed" in line


# ---- video ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["explore", "random"])
def test_a_video_has_a_frame_for_each_row(folder, tmp_path, policy):
    file = tmp_path / "new" / "film.gif"
    assert command(["video", str(folder), "--seed", "7", "--policy", policy, "--rows", "6", "--out", str(file)]) == 0
    with Image.open(file) as film:
        assert film.n_frames == 6 and film.info["loop"] == 0


def test_a_cell_is_as_strong_as_its_channel_is_sure():
    channels = np.zeros((2, 2, 3))
    channels[0, 1, 2], channels[1, 0, 0] = 1.0, 0.25
    got = painted(channels)
    np.testing.assert_allclose(got[0, 0], NIGHT)
    np.testing.assert_allclose(got[0, 1], CHANNELS[2])
    np.testing.assert_allclose(got[1, 0], 0.75 * np.array(NIGHT) + 0.25 * CHANNELS[0])


def test_a_class_has_a_colour_and_class_0_is_the_ground():
    obs = np.zeros((2, 2, 3), np.int32)
    obs[0, 1] = 3, 7, 7  # of which the first is drawn
    got = painted(channels_of(ObsSpace((2, 2, 3), "categorical", 8), obs))
    np.testing.assert_allclose(got[0, 0], NIGHT)
    np.testing.assert_allclose(got[0, 1], CHANNELS[2])


def test_an_image_of_three_channels_has_its_own_colours():
    image = np.zeros((2, 2, 3), np.uint8)
    image[0, 1] = 255, 51, 0
    space = ObsSpace((2, 2, 3), "image")
    np.testing.assert_allclose(pixel_colours(space, channels_of(space, image))[0], [[0, 0, 0], [1, 0.2, 0]])
    four = np.zeros((2, 2, 4))
    np.testing.assert_allclose(pixel_colours(ObsSpace((2, 2, 4), "image"), four)[0, 0], NIGHT)


def test_an_action_in_words():
    assert action_words(np.int32(3)) == "3" and action_words(np.float32([0.5, -1])) == "0.50, -1.00"
    assert action_words(np.zeros(5, np.float32)) == "0.00, 0.00, 0.00 and 2 more"


def test_a_long_title_is_not_cut():
    """Up to two lines; nothing reaches the right edge, and words of the second line are there."""
    canvas = Canvas(640, 64)
    [short], long = (
        ["tasker of seed 3"],
        "an environment with a rather long name (size 6, action_map_per_seed true): " * 2,
    )
    assert canvas.width_of(short, 13, bold=True) < 608 < canvas.width_of(long, 13, bold=True)
    assert all(canvas.width_of(line, 11, bold=True) <= 608 for line in wrapped(long, LONG_TITLE).split("\n"))


def test_cells_are_where_they_belong():
    colours = np.ones((2, 4, 3))
    colours[1, 3] = [1, 0, 0]
    canvas = Canvas(80, 60)
    canvas.cells((0, 10, 80, 40), colours)  # of 20 points
    picture = np.asarray(canvas.finished())
    assert picture.shape == (60, 80, 3) and SCALE > 1
    assert tuple(picture[40, 70]) == (255, 0, 0) and tuple(picture[20, 70]) == tuple(picture[55, 70]) == (255,) * 3


def test_boards_are_told_from_numbers():
    assert is_board(ObsSpace((10, 5), "binary")) and is_board(ObsSpace((10, 10, 4), "binary"))
    assert is_board(ObsSpace((7, 7, 3), "categorical", 11)) and not is_board(ObsSpace((3,), "categorical", 5))
    assert not is_board(ObsSpace((4,), "real")) and not is_board(ObsSpace((1, 1), "binary"))
    assert is_board(ObsSpace((12, 12, 5), "real")) and not is_board(ObsSpace((12, 12, 50), "real"))
    assert not is_board(ObsSpace((3, 4), "real"))  # agents by numbers, say


def test_real_channels_are_as_strong_as_they_are_large_in_the_film():
    space = ObsSpace((2, 2, 2), "real")
    film = np.zeros((3, 2, 2, 2), np.float32)
    film[1, 0, 0, 0], film[2, 1, 1, 0] = -2.0, 6.0  # the second channel is always 0
    got = channels_of(space, film[0], channel_span(space, film))
    np.testing.assert_allclose(got, np.broadcast_to([0.25, 0.0], (2, 2, 2)))
    np.testing.assert_allclose(channels_of(space, film[2], channel_span(space, film))[1, 1], [1.0, 0.0])


class Filmed(Environment):
    """What a film is of; nobody plays it."""

    def __init__(self, space, tiles):
        self.obs_space, self.tiles = space, tiles

    def reset(self, key):
        raise NotImplementedError

    def step(self, key, state, action):
        raise NotImplementedError


def scene_of(space, obs, predicted, tiles=None):
    """A film of five rows, of two episodes; the model sees the first row of each alone."""
    step, action = np.array([0, 1, 2, 0, 1], np.int32), np.zeros(5, np.int32)
    error, score = np.zeros(5, np.float32), np.zeros(5)
    return Scene(Filmed(space, tiles), obs, predicted, error, step < 1, step, step, score, None, None, action)


def test_the_numbers_that_change_most_are_drawn():
    obs = np.zeros((5, 30), np.float32)
    obs[:, 20], obs[:, 4] = [0, 1, 0, 0, 1], [1, 1, 1, 2, 2]  # the latter only where an episode begins
    obs[:, 29] = [3, 3, 4, 4, 4]
    layout = layout_of(scene_of(ObsSpace((30,), "real"), obs, obs))
    assert layout.board is None
    names = [number.name for number in layout.numbers]
    assert names == [f"observation {index}" for index in (0, 1, 2, 3, 4, 5, 20, 29)]
    np.testing.assert_array_equal(layout.numbers[-1].truth, obs[:, 29])


def test_beside_a_board_the_other_entries_that_change_are_drawn():
    space = DictSpace(
        {"walls": ObsSpace((3, 3), "binary"), "agent": ObsSpace((2,), "real"), "time": ObsSpace((), "real")}
    )
    obs = {"walls": np.eye(3)[None].repeat(5, 0), "agent": np.zeros((5, 2)), "time": np.array([0.0, 1, 2, 0, 1])}
    obs["agent"][2, 1] = 1
    scene = scene_of(space, obs, obs)
    layout = layout_of(scene)
    assert layout.board == "walls" and [number.name for number in layout.numbers] == ["agent 1", "time"]
    plain = scene_of(space.entries["walls"], obs["walls"], obs["walls"])
    assert draw_frames(scene, "a title")[0].size[1] > draw_frames(plain, "a title")[0].size[1]


def test_an_environments_own_tiles_are_drawn():
    """Green where a number is above 1, else black: the model expects none, and what it missed is drawn a third time."""
    obs = np.zeros((5, 6))
    obs[3, 5] = 2.0

    def tiles(row):
        board = np.zeros((2, 3, 2, 2, 3))
        board[row.reshape(2, 3) > 1] = 0, 1, 0
        return board

    scene = scene_of(ObsSpace((6,), "real"), obs, np.zeros((5, 6)), tiles)
    picture = np.asarray(draw_frames(scene, "a title")[3])[:BODY]
    greens = [(np.abs(part - [0, 255, 0.0]).sum(-1) < 30).sum() for part in np.array_split(picture, 3, 1)]
    assert picture.shape[1] == WIDTH and greens[0] > 1000 and greens[1] == 0 and abs(greens[2] - greens[0]) < 200


def test_a_gif_keeps_its_colours_and_its_time(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("#d9730d", "#1f5a94")]
    (tmp_path / "a.gif").write_bytes(write_gif(frames, 20))
    with Image.open(tmp_path / "a.gif") as film:
        assert film.n_frames == 2 and film.info["duration"] == 50
        for index, frame in enumerate(frames):
            film.seek(index)
            off = np.asarray(film.convert("RGB"), int) - np.asarray(frame, int)
            assert np.abs(off).max() <= 4


# ---- export --------------------------------------------------------------------------------------------------------


def test_a_copy_has_the_agents_and_the_numbers_of_its_seeds(folder, tmp_path, capsys):
    """The first two of three seeds, without what only training needs."""
    copy = tmp_path / "new" / "copy"
    assert command(["export", str(folder), "--out", str(copy), "--seeds", "2"]) == 0
    assert "MB" in capsys.readouterr().out
    whole, kept = load_run(folder), load_run(copy)
    assert [group.seeds for group in kept.groups] == [[5, 6]] and kept.missing == []
    for part in ("agent", "hypers", "env_params"):
        assert tree_equal(getattr(kept.groups[0], part), getattr(whole.groups[0], part)), part
    assert kept.groups[0].config == whole.groups[0].config and kept.groups[0].finished
    assert kept.groups[0].environment == spaces_of(whole.groups[0].env)
    [before], [after] = read_runs([folder]), read_runs([copy])
    assert after.seeds == [5, 6] and after.summary["seeds"] == [5, 6]
    for name in ("score", "untrained", "visited_states"):
        assert after.summary[name] == before.summary[name][:2]
    assert after.summary["mean"] == pytest.approx(np.mean(after.summary["score"]))
    for name, values in before.metrics.items():
        np.testing.assert_array_equal(after.metrics[name], values[:2], name)
    assert command(["report", str(copy)]) == 0

    saved, whole_round = arrays(copy), {k: x for k, x in arrays(folder).items() if "round-0000" in k}
    assert {name.split("[0].")[1].partition(".")[0] for name in saved} == {"agent", "diverged", "hypers"}
    bytes_of = lambda found: sum(x.nbytes for x in found.values())
    assert bytes_of(saved) < 0.6 * bytes_of(whole_round)
    assert not any(str(tmp_path).encode() in each.read_bytes() for each in copy.rglob("*.[tj]*"))


def test_a_copy_plays_as_the_run_does(folder, tmp_path):
    assert command(["export", str(folder), "--out", str(tmp_path / "all")]) == 0
    for path in (folder, tmp_path / "all"):
        assert command(["eval", str(path), "--episodes", "2"]) == 0
    run_says, copy_says = (json.loads((path / "eval.json").read_text()) for path in (folder, tmp_path / "all"))
    assert run_says == copy_says
    assert command(["video", str(tmp_path / "all"), "--seed", "7", "--rows", "6"]) == 0


def test_a_copy_of_a_run_that_is_at_work_says_so(folder, tmp_path):
    shutil.rmtree(folder / "checkpoints" / "round-0001")
    (folder / "summary.json").unlink()
    assert command(["export", str(folder), "--out", str(tmp_path / "out")]) == 0
    assert load_run(tmp_path / "out").missing == [7] and not (tmp_path / "out" / "summary.json").exists()


def test_what_cannot_be_copied_or_go_on_says_so_in_one_line(folder, tmp_path, capsys):
    assert "--seeds must be 1 to 3" in refused(capsys, "export", folder, "--out", tmp_path / "out", "--seeds", "4")
    assert "is not empty" in refused(capsys, "export", folder, "--out", folder)
    assert command(["export", str(folder), "--out", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    assert run.main([*MIXED, "--steps", "80", "--logdir", str(tmp_path / "out")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "training cannot go on with it" in line
