"""A model, settings and rows that tests of intrinsic rewards share.

Axes: T time, B windows, n pairs, A actions, Q numbers of a projection.
"""

import jax.numpy as jnp
import jax.random as jr
import numpy as np

from envs.environment import ActionSpace, ObsSpace
from stages.config import Config, EnsembleConfig, Hypers, ModelConfig
from stages.decode import decode_mean
from stages.intrinsic import VisitCounts
from stages.networks.distributions import Categorical
from stages.replay import Row
from stages.rssm import Latent
from stages.world_model import Observed, WorldModel
from tests.conftest import arbitrary, to_device

T, B, n, A, Q = 4, 3, 12, 3, 5
SIZES = ModelConfig(deter=2, stoch=2, classes=2, units=8, hidden=4, blocks=1, layers=1)
OBS, ACTIONS = ObsSpace((7,), "binary"), ActionSpace("discrete", A)
ENSEMBLE = EnsembleConfig(
    members=3, layers=1, units=16, input="decoded", target="projected", projection=Q, prior_layers=1, updates=2
)
CONFIG = Config(mode="explore", model=SIZES, ensemble=ENSEMBLE)
HYPERS = Hypers(action_scale=3.0, ensemble_lr=3e-3)
MODEL = arbitrary(lambda: WorldModel(CONFIG, OBS, ACTIONS, key=jr.key(0)))
# Three actions at each pair's first row, taken 0 to 99 times.
COUNTS = VisitCounts(jnp.eye(A), to_device(np.resize([0, 1, 3, 8, 15, 24, 99], (n, A)), jnp.int32))


def rows_of(lead, seed=0) -> Row:
    """Made-up rows of binary observations; an episode ends at row 0 of entry 1."""
    rng, never = np.random.default_rng(seed), np.zeros(lead, bool)
    is_last, is_first = never.copy(), never.copy()
    is_last[0, 1], is_first[1, 1] = True, True
    return Row(
        to_device(rng.integers(0, 2, (*lead, 7)).astype(OBS.dtype)),
        to_device(rng.integers(0, A, lead), jnp.int32),
        jnp.zeros(lead),
        to_device(is_first),
        to_device(is_last),
        to_device(is_last),
        to_device(rng.normal(size=(*lead, 2)), jnp.float32),
        to_device(rng.integers(0, 2, (*lead, 2)), jnp.uint8),
    )


def feat_of(rows):
    return Latent.stored(rows.deter, rows.stoch, 2, jnp.float32).feat


def observed_of(rows) -> Observed:
    """What the model keeps of rows, for rewards that read no distribution of it."""
    latent = Latent.stored(rows.deter, rows.stoch, 2, jnp.float32)
    unused = Categorical(latent.stoch, latent.stoch)
    return Observed(latent, unused, unused)


def slow_inputs(feat, action):
    """The decoded observation at a mean square of 1, and three times the one-hot action; in float64."""
    stoch = feat[..., 2:].reshape(*feat.shape[:-1], 2, 2)
    seen = np.asarray(decode_mean(MODEL.decoder, Latent(feat[..., :2], stoch)), np.float64)
    seen = seen * np.sqrt(7) / np.sqrt((seen**2).sum(-1, keepdims=True) + 0.01)
    return np.concatenate([seen, 3 * np.asarray(action)], -1)
