"""What a run is: `Config` (static: shapes, counts, names) and `Hypers` (scalars that a sweep may vmap over).

Defaults are those of DreamerV3 (Hafner et al., Nature 2025; the reference implementation's configs.yaml) unless the
field says otherwise; Plan2Explore's are those of Sekar et al. 2020 (arXiv 2005.05960). presets.py has settings that go
together, cli/validate.py what is refused.
"""

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

import equinox as eqx
from jaxtyping import Array, Float
from tyro.conf import Suppress

Mode = Literal["task", "explore", "mix", "random"]
Norm = Literal["returns", "advantages", "rms"]
ExplorerReward = Literal["disagreement", "constant", "rnd", "count"]
Scalar = Float[Array, ""] | float
"""A hyperparameter where it is used: a Python number, or an array without axes, as a sweep has it."""

MOST_STEPS = 4096  # env steps of one iteration; so the least frequent schedule is one update after as many steps


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
    outcome: Literal["separate", "joint"] = "separate"
    """A reward head and a continue head (separate), or one distribution over both (joint: networks/heads.py)."""
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
    """What members read besides the action. feat: the model's feature (the paper's). decoded: the observation that the
    decoder makes of it, whose meaning stays fixed while features are still being learned. projected: a fixed random
    projection of that, which costs as much for a large observation as for a small one."""
    target: Literal["probs", "projected"] = "probs"
    """What members predict of step t+1. probs: the posterior's probabilities (the published form), which need
    --ensemble.updates 0. projected: a fixed random projection of the observation, which does not move as the model
    learns."""
    projection: int = 32
    """Size of an observation's fixed random projection, for input and target projected."""
    prior_layers: int = 0
    """Hidden layers of the frozen random network that is added to each member (Osband et al. 2018, arXiv 1806.03335),
    so that members differ where nothing was learned; 0: none."""
    updates: int = 0
    """Updates of the ensemble for each update of the model, with an optimiser of its own and on replayed rows drawn for
    it; 0: the ensemble learns with the model, from its batch and by its optimiser (the reference's)."""
    batch_size: int = 256
    """Rows of each of the ensemble's own updates."""
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
    """Put each new window once into the next batch, before uniformly drawn windows."""


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
    """The continue head's target is 1 - 1/horizon while an episode goes on: the head predicts the discount, too."""
    lam: float = 0.95
    """Lambda of the lambda-return."""
    entropy: float = 3e-4
    """Entropy bonus of the tasker."""
    explorer_entropy: float = 3e-4
    """Entropy bonus of the explorer."""
    continuous_entropy: float = 1.0
    """Factor of both entropy bonuses where actions are continuous."""
    slow_rate: float = 0.02
    """Rate of the slow critic's moving average."""
    slow_regularizer: float = 1.0
    """Weight of the critic's loss towards the slow critic's prediction."""
    return_rate: float = 0.01
    """Rate of the moving average of the returns' 5th and 95th percentile."""
    return_floor: float = 1.0
    """Smallest range of returns that divides advantages (DreamerV3, eq. 7)."""
    task_floor: float = 0.05
    """Smallest divisor of the tasker's advantages where --task-norm is not returns; small rewards are enlarged."""
    intrinsic_floor: float = 1e-8
    """Smallest divisor of the explorer's advantages: disagreement shrinks, and a floor of 1 would hide it."""
    intrinsic_horizon: float = 0.0
    """Discount horizon of the explorer's reward; 0: discount_horizon."""
    tasker_share: float = 0.25
    """Share of the episodes of mode mix in which the tasker acts."""
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
    """Loss scale: the explorer's critic on replayed rows. Disagreement is low there, as the ensemble has learned from
    them; Plan2Explore has no such loss."""
    scale_ensemble: float = 1.0
    """Loss scale: ensemble, where it learns with the model."""
    ensemble_lr: float = 2e-3
    """Learning rate of the ensemble's own updates."""
    prior_scale: float = 1.0
    """Weight of the frozen random network in each member's prediction."""
    novelty_limit: float = 5.0
    """With --episodic-novelty: the largest factor by which the intrinsic reward raises it (Never Give Up's L).
    With 1 it does not."""
    episodic_sharpness: float = 9.0
    """With --episodic-novelty: two states count as one where their observations differ little. The kernel is
    exp(-sharpness^2 d / 2); d is the mean squared difference of the observations' normalised numbers."""
    action_scale: float = 1.0
    """Factor of the action that members read: beside many other inputs a one-hot entry of 1 has little weight, and
    members are slow to tell actions apart."""


@dataclass(frozen=True)
class Config:
    """One run. Hashable; everything that decides a shape or a trace is here."""

    env: str = "Catch-bsuite"
    """Registered environment id."""
    env_args: Suppress[tuple[tuple[str, str], ...]] = ()
    """Constructor arguments and parameters of the environment (on the command line: --env.size 20)."""
    mode: Mode = "task"
    """task: plain DreamerV3. explore: an explorer collects, as in Plan2Explore; the environment's reward is not paid to
    it. mix: explorer and tasker collect by turns (--hypers.tasker-share). random: as task, but uniformly random actions
    collect: the control of the others."""
    steps: int = 10_000
    """Environment steps (rows) of a seed, all its environments together, in `mode`."""
    adapt_steps: int = 0
    """Further steps in mode task after them: explore, then adapt, in one run."""
    envs: int = 1
    """Environments of a seed, stepped together."""
    horizon: int = 15
    """Imagined steps, H."""
    task_norm: Norm = "returns"
    """What divides the tasker's advantages: the range of the returns (DreamerV3's), the range of the advantages
    themselves, or their root mean square (rms). In a sparse task one action moves the return by a small part of its
    range: the entropy bonus then outweighs it."""
    intrinsic_norm: Norm = "returns"
    """What divides the explorer's intrinsic advantages: the range of the returns (DreamerV3's), the range of the
    advantages, or their root mean square. In episodes of one length, intrinsic returns differ mostly by the time that
    is left, which no action changes."""
    enlarge_rewards: bool = False
    """Where an environment pays less than 1, divide rewards by the largest absolute one that the seed has learned from
    (world_model.reward_scale): with few bins, small rewards are not learned. Scores and metrics stay in the
    environment's unit."""
    explorer_reward: ExplorerReward = "disagreement"
    """The explorer's intrinsic reward: the ensemble's disagreement; random network distillation (rnd) of states and
    actions, with the ensemble's inputs, sizes and updates; 1 / sqrt(1 + n) after n visits, where states can be counted
    (count), learned from the latent with the ensemble's inputs, sizes and updates; or 1 for every step (constant). The
    constant is a control: it pays episodic novelty alone, while the ensemble learns and is measured. Without episodic
    novelty it pays for long episodes, and is neither centred nor discounted by a horizon of its own."""
    intrinsic_centred: bool = False
    """Divide the intrinsic reward by its mean over imagined states, and subtract 1: the end of an episode then costs
    the explorer nothing. In modes explore and mix."""
    episodic_novelty: bool = False
    """Pay 1 / sqrt(1 + n), where n counts the episode's earlier states that are like this one, as far back as a window
    of replay reaches; and up to --hypers.novelty-limit times as much where the intrinsic reward is above its average
    (Never Give Up; episodic.py). Without it an explorer is paid for one state again and again, as long as the state is
    rare in replay."""
    imagine_batch: int = 0
    """Starts that are imagined at once. It changes the speed, and numbers only through the order of sums; 0 takes 64 on
    a CPU and all on accelerators."""
    vmap_width: int = 0
    """Seeds that a device computes at once. It changes only the speed; 0 takes 1 on a CPU's core and all on
    accelerators."""
    eval_episodes: int = 16
    """Episodes that the tasker plays in each evaluation of a seed. Where the time limit is long they are fewer, so that
    they have at most 64,000 rows together; with --eval-steps all are played."""
    eval_steps: int = 0
    """Longest evaluation episode, which cuts longer ones short; 0 takes the environment's own time limit."""
    eval_greedy: bool = False
    """Evaluate with the policy's most likely action instead of a sample (the reference samples)."""
    model: ModelConfig = field(default_factory=ModelConfig)
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)

    @property
    def explores(self) -> bool:
        """Whether an explorer learns, and an intrinsic reward for it."""
        return self.mode in ("explore", "mix")

    @property
    def schedule(self) -> tuple[int, int]:
        """(env steps, updates) of one iteration: the least with updates * B * T = train_ratio * steps * envs."""
        ratio = self.replay.train_ratio * self.envs / (self.replay.batch_size * self.replay.batch_length)
        pair = Fraction(ratio).limit_denominator(MOST_STEPS)
        return pair.denominator, pair.numerator

    @property
    def prefill(self) -> int:
        """Steps of each environment before the first update: at least one window and its context."""
        return max(self.replay.batch_length + 1, -(-self.replay.prefill // self.envs))
