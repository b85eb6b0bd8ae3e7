"""What a run is: `Config` (static: shapes, counts, names), `Hypers` (scalars that a sweep may vmap over), presets.

Defaults are those of DreamerV3 (Hafner et al., Nature 2025; the reference implementation's configs.yaml) unless the
field says otherwise; Plan2Explore's are those of Sekar et al. 2020 (arXiv 2005.05960).
"""

import dataclasses
import difflib
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Literal

import equinox as eqx
from tyro.conf import Suppress

Mode = Literal["task", "explore", "mix", "random"]
Norm = Literal["returns", "advantages"]
Critics = Literal["each", "sum"]
Pay = Literal["disagreement", "constant"]


MOST_STEPS = 4096  # of one iteration, and so the least frequent schedule: one update after so many steps
MOST_UPDATES = 4096  # after one step
MOST_ROWS = 2_000_000_000  # of a seed: steps are counted in 32 bits, and a run's last chunk may go a little further


class ConfigError(ValueError):
    """A setting that cannot work. Its message is one line that says what to do."""


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the networks."""

    deter: int = 512
    """Units of the recurrent state, D."""
    blocks: int = 8
    """Blocks of the block-diagonal GRU; divides deter."""
    hidden: int = 64
    """Hidden units inside the RSSM."""
    units: int = 64
    """Units of each layer of encoder, decoder, heads, actor and critic."""
    stoch: int = 32
    """Categorical latents, S."""
    classes: int = 4
    """Classes of each categorical latent, K."""
    depth: int = 4
    """Channels of the first convolution; later ones have 2, 3, 4, 4 times as many."""
    bins: int = 255
    """Two-hot bins of reward and critic, at symexp of -20 ... 20 evenly spaced; odd."""
    layers: int = 3
    """Layers of encoder, decoder, actor and critic (reward and continue heads have one)."""
    encoder: Literal["auto", "mlp", "conv"] = "auto"
    """Encoder and decoder: convolutions for (H, W, C) and MLP for all else (auto), or one of them by force."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type: bfloat16 on accelerators and float32 on CPU (auto). Parameters are always float32."""

    @property
    def feat(self) -> int:
        """Numbers of a feature, F: deter and flattened stoch."""
        return self.deter + self.stoch * self.classes


@dataclass(frozen=True)
class EnsembleConfig:
    """Plan2Explore's one-step predictors."""

    members: int = 8
    """Ensemble members, M (5 in the paper, section 4; 8 is the reference's later choice)."""
    layers: int = 2
    """Hidden layers of a member."""
    units: int = 0
    """Units of the layers of a member and of its prior; 0 takes model.units."""
    input: Literal["feat", "decoded", "projected"] = "feat"
    """What members read besides the action: the model's feature (the paper's), or the observation that the decoder
    makes of it. That one says where the agent is in terms that stay while the features are still being learned; in a
    fixed random projection it costs as much for a large observation as for a small one."""
    target: Literal["probs", "stoch", "embed", "deter", "projected"] = "probs"
    """What members predict of step t+1: the posterior's probabilities, its sample, the embedding, deter, or a fixed
    random projection of the observation, which does not move as the model learns."""
    projection: int = 32
    """Numbers of an observation's fixed random projection, for input and target projected."""
    prior_layers: int = 0
    """Hidden layers of the frozen random network that is added to each member (Osband et al. 2018, arXiv 1806.03335),
    so that members differ where nothing was learned; 0: none."""
    updates: int = 0
    """Ensemble updates for each of the model's, by an optimiser and on replayed rows of their own; 0: the ensemble
    learns with the model, in its batch and optimiser (the reference's)."""
    batch_size: int = 256
    """Rows of an update of the ensemble's own."""
    spread: Literal["std", "var"] = "std"
    """Disagreement over members: standard deviation (the reference's), or variance (the paper's eq. 2)."""


@dataclass(frozen=True)
class ReplayConfig:
    """What is kept and how often it is replayed."""

    batch_size: int = 16
    """Windows of a batch, B."""
    batch_length: int = 64
    """Trained rows of a window, T; one more row of context comes before them."""
    train_ratio: float = 32.0
    """Replayed rows per collected row. Updates per row = train_ratio / (batch_size * batch_length)."""
    capacity: int = 1_000_000
    """Rows kept for a seed, all its environments together (no more are allocated than the run collects)."""
    prefill: int = 0
    """Rows collected before the first update; 0 takes the fewest that fill one window in each environment."""
    online: bool = True
    """Serve each newest window once in the next batch, before uniform ones."""


class Hypers(eqx.Module):
    """Scalars of the algorithm. Not part of any shape, so a sweep may vmap over them."""

    lr: float = 4e-5
    """Learning rate of the one optimiser."""
    warmup: float = 1000.0
    """Updates of linear learning-rate warm-up."""
    agc: float = 0.3
    """Adaptive gradient clipping: largest ratio of a gradient's norm to its parameter's norm."""
    free_nats: float = 1.0
    """KL below this many nats is free."""
    unimix: float = 0.01
    """Share of the uniform distribution in latents."""
    policy_unimix: float = 0.0
    """Share of the uniform distribution in discrete policies (the reference's code applies none, though its
    configuration says 0.01)."""
    discount_horizon: float = 333.0
    """The continue head's target is 1 - 1/horizon while an episode goes on: the discount lives there."""
    lam: float = 0.95
    """Lambda of the lambda-return."""
    entropy: float = 3e-4
    """Entropy bonus of the tasker."""
    explorer_entropy: float = 3e-4
    """Entropy bonus of the explorer."""
    slow_rate: float = 0.02
    """Rate of the slow critic's moving average."""
    slow_regularizer: float = 1.0
    """Weight of the critic's loss towards the slow critic's prediction."""
    return_rate: float = 0.01
    """Rate of the moving average of the returns' 5th and 95th percentile."""
    return_floor: float = 1.0
    """Smallest divisor of extrinsic advantages."""
    intrinsic_floor: float = 1e-8
    """Smallest divisor of intrinsic advantages: disagreement shrinks as it is learned, a floor of 1 would hide it."""
    extrinsic_scale: float = 1.0
    """Weight of the normalised extrinsic advantage in mode mix; of the reward itself in a sum (explorer_critics)."""
    intrinsic_scale: float = 1.0
    """Weight of the normalised intrinsic advantage in mode mix; of the disagreement itself in a sum."""
    scale_recon: float = 1.0
    """Loss scale: reconstruction."""
    scale_reward: float = 1.0
    """Loss scale: reward."""
    scale_cont: float = 1.0
    """Loss scale: continue."""
    scale_dyn: float = 1.0
    """Loss scale: KL that moves the prior."""
    scale_rep: float = 0.1
    """Loss scale: KL that moves the posterior."""
    scale_policy: float = 1.0
    """Loss scale: actors."""
    scale_value: float = 1.0
    """Loss scale: critics on imagined rows."""
    scale_repval: float = 0.3
    """Loss scale: the tasker's critic on replayed rows."""
    scale_explorer_repval: float = 0.0
    """Loss scale: the explorer's critics on replayed rows. Disagreement is low there, as the ensemble has learned from
    them; Plan2Explore has no such loss."""
    scale_ensemble: float = 1.0
    """Loss scale: ensemble, where it learns with the model."""
    ensemble_lr: float = 2e-3
    """Learning rate of the ensemble's own updates."""
    prior_scale: float = 1.0
    """Weight of the frozen random network in each member's prediction."""
    action_scale: float = 1.0
    """What members read of an action is multiplied by this: beside many other inputs a one-hot entry of 1 is little,
    and members are slow to tell actions apart."""


@dataclass(frozen=True)
class Config:
    """One run. Hashable; everything that decides a shape or a trace is here."""

    env: str = "Catch-bsuite"
    """Registered environment id."""
    env_args: Suppress[tuple[tuple[str, str], ...]] = ()
    """Constructor arguments and parameters of the environment (on the command line: --env.size 20)."""
    mode: Mode = "task"
    """task: plain DreamerV3. explore: Plan2Explore without any reward. mix: both rewards at once. random: as task, but
    uniformly random actions collect: the control of the others."""
    steps: int = 10_000
    """Environment steps (rows) of a seed, all its environments together, in `mode`."""
    adapt_steps: int = 0
    """Further steps in mode task after them: explore, then adapt, in one run."""
    envs: int = 1
    """Environments of a seed, stepped together."""
    horizon: int = 15
    """Imagined steps, H."""
    intrinsic_norm: Norm = "returns"
    """What divides the explorer's intrinsic advantages: the range of the returns (DreamerV3's), or of the advantages.
    In episodes of one length, intrinsic returns differ mostly by the time that is left, which no action changes."""
    explorer_reward: Pay = "disagreement"
    """What mode explore pays the explorer: the ensemble's disagreement, or 1 for every step. The latter is a control:
    it asks for long episodes and nothing new, while the ensemble learns, and is measured, all the same."""
    explorer_critics: Critics = "each"
    """Critics of mode mix: one for each reward, its advantages divided by their own range (two value heads, as Burda et
    al. 2018, arXiv 1810.12894, section 2.3); or one for the plain sum of both rewards (Plan2Explore's code), whose
    returns' range divides its advantages as DreamerV3's does. A sum of rewards as they come: disagreement may be a
    thousandth of a reward."""
    block: int = 0
    """Starts imagined at once. It changes no number, only the speed; 0 takes 64 on a CPU and all on accelerators."""
    lane: int = 0
    """Seeds that a device computes at once. Only for speed; 0 takes what suits the machine: 1 on a core, else all."""
    eval_episodes: int = 16
    """Episodes of a seed's final evaluation, with the tasker."""
    eval_steps: int = 0
    """Longest evaluation episode; 0 takes the environment's own time limit."""
    eval_greedy: bool = False
    """Evaluate with the policy's most likely action instead of a sample (the reference samples)."""
    model: ModelConfig = field(default_factory=ModelConfig)
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)

    @property
    def schedule(self) -> tuple[int, int]:
        """(env steps, updates) of one iteration: the smallest pair with updates * B * T = train_ratio * steps * N."""
        ratio = self.replay.train_ratio * self.envs / (self.replay.batch_size * self.replay.batch_length)
        pair = Fraction(ratio).limit_denominator(MOST_STEPS)
        return pair.denominator, pair.numerator

    @property
    def prefill(self) -> int:
        """Steps of each environment before the first update: at least one window and its context."""
        return max(self.replay.batch_length + 1, -(-self.replay.prefill // self.envs))


def _model(deter: int, width: int, classes: int, depth: int) -> ModelConfig:
    return ModelConfig(deter=deter, hidden=width, units=width, classes=classes, depth=depth)


# Found by measurement on Catch (CPU, 8 to 32 seeds, 1,500 to 2,000 updates each): lr 2e-3 learned more slowly, 8e-3
# less surely; with entropy 3e-3 the actor commits before the model is worth trusting, and with 0.03 six of 32 seeds
# stayed near 0.6 for good; 16 replayed rows a step beat 32 at equal updates.
_TINY_MODEL = ModelConfig(deter=64, blocks=4, hidden=32, units=32, stoch=8, classes=4, depth=4, bins=63)
_TINY_HYPERS = Hypers(lr=5e-3, warmup=50.0, entropy=0.06, explorer_entropy=0.05, action_scale=10.0)
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


_POSITIVE = {
    "": ("steps", "envs", "horizon", "eval_episodes"),
    "model": ("deter", "blocks", "hidden", "units", "stoch", "classes", "depth", "bins", "layers"),
    "ensemble": ("members", "layers", "projection", "batch_size"),
    "replay": ("batch_size", "batch_length", "capacity", "train_ratio"),
}
_NON_NEGATIVE = {
    "": ("adapt_steps", "block", "lane", "eval_steps"),
    "ensemble": ("units", "prior_layers", "updates"),
    "replay": ("prefill",),
}
# Far above what anyone means: beyond it are arrays that no index counts, compilers at work for hours, or updates that
# never end. Below it, runs/rounds.py says what does not fit.
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
_POSITIVE_HYPERS = ("lr", "agc", "discount_horizon", "return_floor", "intrinsic_floor", "ensemble_lr")
_UNIT_HYPERS = ("unimix", "policy_unimix", "lam", "slow_rate", "return_rate")


def _setting(config: Config, group: str, name: str) -> tuple[str, float]:
    """A setting's flag and value."""
    flag = (f"--{group}.{name}" if group else f"--{name}").replace("_", "-")
    return flag, getattr(getattr(config, group) if group else config, name)


def validate(config: Config, hypers: Hypers) -> None:
    """Raises ConfigError, one line, for settings that cannot work together; before anything compiles."""
    for bound, table in ((1, _POSITIVE), (0, _NON_NEGATIVE)):
        for group, names in table.items():
            for name in names:
                flag, value = _setting(config, group, name)
                smallest = 0 if name == "train_ratio" else bound
                if not value >= smallest or (name == "train_ratio" and not 0 < value < float("inf")):
                    need = "positive" if bound else "0 or more"
                    raise ConfigError(f"{flag} must be {need}, not {value}")
    for group, mosts in _MOST.items():
        for name, most in mosts.items():
            flag, value = _setting(config, group, name)
            if value > most:
                raise ConfigError(f"{flag} must be at most {most:,}, not {value:,}")
    if config.steps + config.adapt_steps > MOST_ROWS:
        total = config.steps + config.adapt_steps
        raise ConfigError(f"--steps and --adapt-steps must be at most {MOST_ROWS:,} together, not {total:,}")
    for f in dataclasses.fields(hypers):
        value = getattr(hypers, f.name)
        flag = f"--hypers.{f.name.replace('_', '-')}"
        if not 0 <= value < float("inf"):
            raise ConfigError(f"{flag} must be finite and 0 or more, not {value}")
        if f.name in _POSITIVE_HYPERS and value == 0:
            raise ConfigError(f"{flag} must be positive, not {value}")
        if f.name in _UNIT_HYPERS and value > 1:
            raise ConfigError(f"{flag} must lie between 0 and 1, not {value}")
    model, replay = config.model, config.replay
    if model.deter % model.blocks:
        raise ConfigError(f"--model.blocks {model.blocks} must divide --model.deter {model.deter}")
    if model.classes < 2 or model.classes > 256:
        raise ConfigError(f"--model.classes must lie between 2 and 256, not {model.classes}")
    if model.bins % 2 == 0 or model.bins < 3:
        raise ConfigError(f"--model.bins must be odd and at least 3, not {model.bins}")
    if config.mode in ("explore", "mix") and config.ensemble.members < 2:
        raise ConfigError("--ensemble.members must be at least 2: one member alone cannot disagree")
    if config.explorer_reward != "disagreement" and config.mode != "explore":
        raise ConfigError(f"--explorer-reward {config.explorer_reward} is for --mode explore, not {config.mode}")
    if config.explorer_critics == "sum" and config.mode != "mix":
        raise ConfigError(f"--explorer-critics sum needs two rewards to sum: --mode mix, not {config.mode}")
    if config.ensemble.updates and config.ensemble.target == "probs":
        raise ConfigError(
            "--ensemble.updates needs a target that replayed rows hold, not --ensemble.target probs: stoch, say"
        )
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
