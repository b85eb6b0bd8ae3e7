"""Presets: settings that go together, by name, and where each comes from."""

import difflib
from dataclasses import replace

from stages.config import Config, ConfigError, EnsembleConfig, Hypers, ModelConfig, ReplayConfig


def _model(deter: int, width: int, classes: int, depth: int) -> ModelConfig:
    return ModelConfig(deter=deter, hidden=width, units=width, classes=classes, depth=depth)


# Found by measurement on Catch (CPU, 8 to 32 seeds, 1,500 to 2,000 updates each): lr 2e-3 learned more slowly, 8e-3
# less surely; with entropy 3e-3 the actor commits before the model is worth trusting, and with 0.03 six of 32 seeds
# stayed near 0.6 for good; 16 replayed rows a step beat 32 at equal updates.
_TINY_MODEL = ModelConfig(deter=64, blocks=4, hidden=32, units=32, stoch=8, classes=4, depth=4, bins=63)
# The range of the explorer's advantages is 0.1 to 0.6 while much of Deep Sea 10 or 20 is new, and falls to some
# hundredths once it is known: with a floor of 0.1 mode mix then takes the reward, where it would explore for good.
_TINY_HYPERS = Hypers(
    lr=5e-3, warmup=50.0, entropy=0.06, explorer_entropy=0.05, action_scale=10.0, mix_intrinsic_floor=0.1
)
_TINY_REPLAY = ReplayConfig(batch_size=8, batch_length=16, train_ratio=16)
# Found by measurement on Deep Sea: with members that learn the posterior's probabilities with the model, disagreement
# grows with visits (it follows where the model has learned); so made, its rank correlation with visits is -0.87 after
# 100 episodes of size 10 (16 seeds, train ratio 64).
_NOVEL = EnsembleConfig(
    members=5, units=64, input="decoded", target="projected", prior_layers=1, updates=2, spread="var"
)
_TINY = Config(
    steps=16_000,
    model=_TINY_MODEL,
    horizon=10,
    eval_episodes=64,
    replay=_TINY_REPLAY,
    ensemble=_NOVEL,
    intrinsic_norm="advantages",
)
_MICRO = ModelConfig(deter=128, blocks=4, hidden=64, units=64, stoch=8, classes=8, depth=4)

PRESETS: dict[str, tuple[Config, Hypers, str]] = {
    "tiny": (
        _TINY,
        _TINY_HYPERS,
        "the default run on a laptop; found by measurement on Catch-bsuite",
    ),
    "tiny-explore": (
        replace(_TINY, replay=replace(_TINY_REPLAY, train_ratio=64)),
        # With a whole nat free the prior is let off where it could know the next state: imagination blurs, and the
        # explorer is paid for the blur. Of size 30, 2 of 12 seeds learned the way to the reward so, and 12 with 0.1.
        replace(_TINY_HYPERS, free_nats=0.1),
        "tiny with four times the updates and a tenth of a free nat, for --mode explore and mix; measured on Deep Sea",
    ),
    "micro": (
        Config(model=_MICRO, horizon=10, replay=ReplayConfig(batch_size=8, batch_length=16)),
        Hypers(lr=1e-3, warmup=100.0, entropy=1e-2, explorer_entropy=1e-2),
        "small tasks on a CPU",
    ),
    **{
        name: (Config(model=_model(*sizes)), Hypers(), f"the reference's size{name}")
        for name, sizes in {
            "1m": (512, 64, 4, 4),
            "12m": (2048, 256, 16, 16),
            "25m": (3072, 384, 24, 24),
            "50m": (4096, 512, 32, 32),
            "100m": (6144, 768, 48, 48),
            "200m": (8192, 1024, 64, 64),
            "400m": (12288, 1536, 96, 96),
        }.items()
    },
}


def preset(name: str) -> tuple[Config, Hypers]:
    """Config and Hypers of a preset. Raises ConfigError for an unknown name, naming the near ones."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=3, cutoff=0.3) or list(PRESETS)
        raise ConfigError(f"unknown preset {name!r}; did you mean {' or '.join(near)}? (all: {', '.join(PRESETS)})")
    config, hypers, _ = PRESETS[name]
    return config, hypers
