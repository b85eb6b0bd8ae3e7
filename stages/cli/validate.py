"""Validate: refuse settings that cannot work with a message of one line, before anything compiles."""

import dataclasses
import os
import sys

from stages.config import MOST_STEPS, Config, ConfigError, Hypers

MOST_UPDATES = 4096  # updates after one env step
MOST_HYPER, LEAST_HYPER = 2.0**128, 2.0**-126  # 32-bit floats: beyond them is infinity, and below them 0
MOST_ROWS = 2_000_000_000  # of a seed: steps are counted in 32 bits, and a run's last chunk may go a little further

_POSITIVE = {
    "": ("steps", "envs", "horizon", "eval_episodes"),
    "model": ("deter", "blocks", "hidden", "units", "stoch", "classes", "depth", "bins", "layers"),
    "ensemble": ("members", "layers", "projection", "batch_size"),
    "replay": ("batch_size", "batch_length", "capacity"),
}
_NON_NEGATIVE = {
    "": ("adapt_steps", "imagine_batch", "vmap_width", "eval_steps"),
    "ensemble": ("units", "prior_layers", "updates"),
    "replay": ("prefill",),
}
# Limits far above any useful value. Beyond them an array has more entries than an index can count, compiling takes
# hours, or an update never ends. sweep/rounds.py refuses settings below these limits that do not fit into memory.
_MOST = {
    "": {"envs": 65_536, "horizon": 1_000, "eval_episodes": 65_536, "eval_steps": MOST_ROWS},
    "model": {
        **dict.fromkeys(("deter", "hidden", "units", "bins"), 65_536),
        **dict.fromkeys(("stoch", "depth"), 4_096),
        "layers": 64,
    },
    "ensemble": {
        **dict.fromkeys(("members", "projection", "updates"), 4_096),
        **dict.fromkeys(("units", "batch_size"), 65_536),
        **dict.fromkeys(("layers", "prior_layers"), 64),
    },
    "replay": {
        **dict.fromkeys(("batch_size", "batch_length"), 65_536),
        **dict.fromkeys(("capacity", "prefill"), MOST_ROWS),
    },
}
_POSITIVE_HYPERS = (
    "lr",
    "agc",
    "discount_horizon",
    "return_floor",
    "task_floor",
    "intrinsic_floor",
    "ensemble_lr",
    "episodic_sharpness",
)
_UNIT_HYPERS = ("unimix", "policy_unimix", "lam", "slow_rate", "return_rate", "tasker_share")


def _setting(config: Config, group: str, name: str) -> tuple[str, float]:
    """A setting's flag and value."""
    flag = (f"--{group}.{name}" if group else f"--{name}").replace("_", "-")
    return flag, getattr(getattr(config, group) if group else config, name)


def check_pictures() -> None:
    """Raise ConfigError if matplotlib cannot be imported: pictures come last, so a run would fail after training."""
    os.environ["MPLBACKEND"] = "agg"  # the only backend that is used, whatever the user's environment names
    try:
        import matplotlib  # noqa: F401
    except Exception as error:  # it reads the user's matplotlibrc
        why = " ".join(str(error).split())
        raise ConfigError(f"matplotlib does not start ({why}): correct or remove its matplotlibrc") from error


def check_env_module(name: str) -> None:
    """Raise ConfigError for a "module:factory" in Python's standard library, such as `os:abort`."""
    module, colon, _ = name.partition(":")
    if colon and module.partition(".")[0] in sys.stdlib_module_names:
        raise ConfigError(f"--env {name}: {module} is of Python's standard library, which has no environments")


def check_countable(config: Config, env: str, countable: bool) -> None:
    """Raises ConfigError where the explorer's reward counts visits, and the environment's states cannot be counted."""
    if config.explorer_reward == "count" and config.explores and not countable:
        raise ConfigError(
            f"--explorer-reward count needs states that can be counted, and {env} has none: take rnd, "
            "which needs no counts"
        )


def validate(config: Config, hypers: Hypers) -> None:
    """Raises ConfigError, one line, for settings that cannot work together; before anything compiles."""
    check_env_module(config.env)
    _check_ranges(config)
    _check_hypers(hypers)
    _check_model(config)
    _check_exploring(config)
    _check_schedule(config)


def _check_ranges(config: Config) -> None:
    """Numbers that are too small or too large by themselves."""
    for bound, table in ((1, _POSITIVE), (0, _NON_NEGATIVE)):
        for group, names in table.items():
            for name in names:
                flag, value = _setting(config, group, name)
                if value < bound:
                    raise ConfigError(f"{flag} must be {'positive' if bound else '0 or more'}, not {value}")
    if not 0 < config.replay.train_ratio < float("inf"):
        raise ConfigError(f"--replay.train-ratio must be positive, not {config.replay.train_ratio}")
    for group, mosts in _MOST.items():
        for name, most in mosts.items():
            flag, value = _setting(config, group, name)
            if value > most:
                raise ConfigError(f"{flag} must be at most {most:,}, not {value:,}")
    if config.steps + config.adapt_steps > MOST_ROWS:
        total = config.steps + config.adapt_steps
        raise ConfigError(f"--steps and --adapt-steps must be at most {MOST_ROWS:,} together, not {total:,}")


def _check_hypers(hypers: Hypers) -> None:
    for f in dataclasses.fields(hypers):
        value = getattr(hypers, f.name)
        flag = f"--hypers.{f.name.replace('_', '-')}"
        if not 0 <= value < MOST_HYPER:
            raise ConfigError(f"{flag} must be finite in 32 bits and 0 or more, not {value}")
        if f.name in _POSITIVE_HYPERS and value < LEAST_HYPER:
            raise ConfigError(f"{flag} must be positive in 32 bits, not {value}")
        if f.name == "novelty_limit" and value < 1:
            raise ConfigError(f"{flag} must be at least 1, not {value}")
        if f.name in _UNIT_HYPERS and value > 1:
            raise ConfigError(f"{flag} must lie between 0 and 1, not {value}")


def _check_model(config: Config) -> None:
    model = config.model
    if model.deter % model.blocks:
        raise ConfigError(f"--model.blocks {model.blocks} must divide --model.deter {model.deter}")
    if model.classes < 2 or model.classes > 256:
        raise ConfigError(f"--model.classes must lie between 2 and 256, not {model.classes}")
    if model.bins % 2 == 0 or model.bins < 3:
        raise ConfigError(f"--model.bins must be odd and at least 3, not {model.bins}")


def _check_exploring(config: Config) -> None:
    if config.explores and config.ensemble.members < 2:
        raise ConfigError("--ensemble.members must be at least 2: one member alone cannot disagree")
    if config.explorer_reward != "disagreement" and not config.explores:
        raise ConfigError(f"--explorer-reward {config.explorer_reward} is for --mode explore or mix, not {config.mode}")
    if config.explorer_reward == "count" and config.ensemble.updates == 0 and config.explores:
        raise ConfigError("--explorer-reward count needs --ensemble.updates 1 or more: it learns by them alone")
    if config.episodic_novelty and not config.explores:
        raise ConfigError(f"--episodic-novelty is of the explorer's reward: --mode explore or mix, not {config.mode}")
    if config.ensemble.updates and config.ensemble.target == "probs":
        raise ConfigError(
            "--ensemble.updates needs a target that replayed rows hold: --ensemble.target projected, not probs"
        )


def _check_schedule(config: Config) -> None:
    replay = config.replay
    if config.adapt_steps and config.mode == "task":
        raise ConfigError("--adapt-steps follows --mode explore, mix or random; in mode task give --steps alone")
    rows = config.prefill * config.envs
    if rows > config.steps:
        flag = "--replay.prefill" if replay.prefill >= rows else "--replay.batch-length"
        raise ConfigError(
            f"a batch of length {replay.batch_length} needs {rows} rows ({config.prefill} of each environment) before "
            f"the first update, but only {config.steps} will be collected: raise --steps or lower {flag}"
        )
    asked = replay.train_ratio * config.envs / (replay.batch_size * replay.batch_length)
    if asked > MOST_UPDATES:
        raise ConfigError(
            f"--replay.train-ratio {replay.train_ratio} gives {asked:.2g} updates a step, more than {MOST_UPDATES:,}: "
            "lower it, or raise --replay.batch-size or --replay.batch-length"
        )
    steps, updates = config.schedule
    if updates == 0 or abs(updates / steps - asked) > 0.01 * asked:
        raise ConfigError(
            f"--replay.train-ratio {replay.train_ratio} gives {asked:.2g} updates a step, which no schedule of up to "
            f"{MOST_STEPS} steps meets: raise it, or lower --replay.batch-size or --replay.batch-length"
        )
    if replay.capacity < (replay.batch_length + 1) * config.envs:
        raise ConfigError(
            f"--replay.capacity {replay.capacity} is below one window of each environment "
            f"({(replay.batch_length + 1) * config.envs} rows): raise it"
        )
