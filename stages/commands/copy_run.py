"""Copy: write a small copy of a run, with its agents but without optimiser, replay and pictures.

`eval`, `video`, `report` and `compare` read the copy like the run. Training cannot be resumed from it.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stages.cli.processes import Processes
from stages.cli.settings_file import JsonObject, Settings
from stages.config import ConfigError
from stages.results.read import PER_SEED, read_metrics, read_summary
from stages.results.statistics import summarise
from stages.store.checkpoint import CheckpointId, Checkpoints
from stages.store.files import RunFolderError, encode_json, make_folder, write_json, write_whole
from stages.store.fingerprint import spaces_of
from stages.store.folder import RunFolder, read_config
from stages.store.load import Loaded, Part, load_run, take_seeds


def copy_run(run: Path, out: str, seeds: int | None, trust: bool, best: bool = False) -> Path:
    """Copy the first `seeds` seeds of a run to the new folder `out`; None copies all. Returns the folder.

    Args:
        trust, best: as in `load_run`.

    Raises:
        RunFolderError: the run cannot be read; or `out` is not empty, or cannot be written.
        ConfigError: the run has fewer seeds; or as in `load_run`.
        EnvError: its environment cannot be made.
    """
    loaded = load_run(run, trust, best)
    config = read_config(loaded.path)
    if seeds is not None and not 1 <= seeds <= config["seeds"]:
        raise ConfigError(f"--seeds must be 1 to {config['seeds']}, as many as the run has, not {seeds}")
    folder = make_folder(out)
    if any(folder.iterdir()):
        raise RunFolderError(f"{str(folder)!r} is not empty; choose another --out, or remove it")
    trained = range(config["seed_start"], config["seed_start"] + config["seeds"])
    kept = trained[:seeds]
    write_agents(folder, loaded, kept)
    if rows := read_metrics(loaded.path / RunFolder.METRICS):
        write_whole(folder / RunFolder.METRICS, b"".join(encode_json(row) for row in rows if row["seed"] in kept))
    if summary := read_summary(loaded.path, trained):
        write_json(folder / RunFolder.SUMMARY, _summary_of(summary, trained, kept))
    # Written last, since config.json makes the folder a run's. The original path is left out.
    write_json(folder / RunFolder.CONFIG, config | {"seeds": len(kept), "logdir": ""})
    return folder


def write_agents(folder: Path, loaded: Loaded, kept: Sequence[int]) -> None:
    """Write a checkpoint of each group with seeds in `kept`, with the arrays that `load` reads.

    Raises:
        RunFolderError: the disk refuses.
    """
    rounds, parts = [], []
    for group in loaded.groups:
        slots = np.flatnonzero([seed in kept for seed in group.seeds])
        if not slots.size:
            continue
        seeds = [group.seeds[slot] for slot in slots]
        diverged = np.array([group.diverged.get(seed, 0) // group.config.envs for seed in seeds], np.int32)
        agent, hypers, env_params = take_seeds((group.agent, group.hypers, group.env_params), slots)
        parts.append((group.step, Part(agent, hypers, env_params, diverged)))
        log = {"round": {"seeds": seeds, "mine": seeds, "trials": []}, "phase": int(group.config != loaded.config)}
        if group.best_steps:
            log["best_steps"] = [group.best_steps[slot] for slot in slots]
        rounds.append(log)
    checkpoints, spaces = Checkpoints(folder, Processes(), keep=1), spaces_of(loaded.groups[0].env)
    try:
        for index, (step, part) in enumerate(parts):
            progress = {"rounds": rounds, "trials": [""], "agents_only": True, "environment": spaces}
            checkpoints.save(CheckpointId(index, step), (part,), progress)
        checkpoints.wait()
    finally:
        checkpoints.close()
    for note in folder.rglob("commit_success.txt"):  # orbax's: it has the path to which the checkpoint was written
        write_whole(note, b"")


def _summary_of(summary: Settings, trained: Sequence[int], kept: Sequence[int]) -> JsonObject:
    """The summary of the kept seeds alone; statistics of the scores are computed again."""
    seeds = summary.get("seeds", trained)
    indices = [index for index, seed in enumerate(seeds) if seed in kept]
    lists = {name: summary[name] for name in PER_SEED if summary.get(name) is not None}
    kept_summary: JsonObject = {name: [values[index] for index in indices] for name, values in lists.items()}
    kept_summary["diverged"] = {seed: step for seed, step in summary.get("diverged", {}).items() if int(seed) in kept}
    if kept_summary.get("score"):
        scores = np.array(kept_summary["score"], np.float64)
        kept_summary |= dataclasses.asdict(summarise(scores, [seeds[index] for index in indices]))
    return dict(summary) | kept_summary
