"""Small ensembles, models and rows, made up: for tests of the ensemble and of what it reads.

Axes: M members, T rows, B windows, n pairs, F feat, A actions, Y target dimensions.
"""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from envs.environment import ActionSpace, ObsSpace
from stages.config import Config, EnsembleConfig, Hypers, ModelConfig
from stages.ensemble import Ensemble
from stages.networks.distributions import Categorical
from stages.obs_numbers import RunningNormalizer
from stages.rssm import Latent
from stages.world_model import Observed, WorldModel
from tests.conftest import arbitrary

M, T, B, A = 3, 5, 2, 3
SIZES = ModelConfig(deter=2, stoch=2, classes=2, units=8, hidden=4, blocks=1, layers=2)
F, Y = SIZES.feat, SIZES.stoch * SIZES.classes
HYPERS = Hypers(prior_scale=0.6, action_scale=3.0, ensemble_lr=3e-3)
VECTOR, ACTIONS = ObsSpace((7,), "real"), ActionSpace("discrete", A)
SPACES = {
    "real": VECTOR,
    "binary": ObsSpace((3, 4), "binary"),
    "categorical": ObsSpace((2,), "categorical", 5),
    "image": ObsSpace((8, 8, 3), "image"),
}


def make(obs=VECTOR, **settings):
    """An ensemble which predicts the posterior's Y probabilities, unless told otherwise; to be traced."""
    sizes = EnsembleConfig(**{"members": M, "layers": 1, "target": "probs"} | settings)
    return Ensemble(Config(mode="explore", model=SIZES, ensemble=sizes), obs, A, key=jr.key(0))


def made(obs=VECTOR, **settings):
    """`make`, compiled."""
    return jax.jit(functools.partial(make, obs, **settings))()


def made_up(obs=VECTOR, **settings):
    """`make` with arbitrary weights, which is not to compile; its normaliser has seen nothing."""
    ensemble = arbitrary(functools.partial(make, obs, **settings))
    seen = ensemble.numbers.normalizer
    return ensemble if seen is None else eqx.tree_at(lambda e: e.numbers.normalizer, ensemble, nothing_seen(seen))


def nothing_seen(normalizer: RunningNormalizer) -> RunningNormalizer:
    return jax.tree.map(jnp.zeros_like, normalizer)


def model_of(obs=VECTOR) -> WorldModel:
    return arbitrary(lambda: WorldModel(Config(model=SIZES), obs, ACTIONS, key=jr.key(0)))


MODEL = model_of()


@dataclasses.dataclass
class Rows:
    """Made-up rows; an episode begins at row 2 of window 0."""

    feat: jax.Array
    action: jax.Array
    target: jax.Array
    is_first: jax.Array


def made_up_rows() -> Rows:
    keys = jr.split(jr.key(1), 3)
    action = jax.nn.one_hot(jr.randint(keys[1], (T, B), 0, A), A)
    is_first = jnp.zeros((T, B), bool).at[2, 0].set(True)
    return Rows(jr.normal(keys[0], (T, B, F)), action, jr.normal(keys[2], (T, B, Y)), is_first)


def observed(feat, target):
    """A window with these features, and these numbers in place of the posterior's probabilities."""
    deter, stoch = feat[..., :2], feat[..., 2:].reshape(*feat.shape[:-1], 2, 2)
    prior = Categorical(jnp.full_like(stoch, 0.5), jnp.log(jnp.full_like(stoch, 0.5)))
    post = Categorical(target.reshape(stoch.shape), prior.logp)
    return Observed(Latent(deter, stoch), post, prior)


def leveled(kind, numbers):
    """An observation's numbers with a mean square of about 1; reals as they are."""
    if kind == "real":
        return numbers
    return numbers * np.sqrt(numbers.shape[-1] / ((numbers**2).sum(-1, keepdims=True) + 0.01))
