"""The matching game: every observation shows what to answer; an episode is ten rounds.

    python run.py --env docs.experiments.matching:discrete --env.reward 0.01
    python run.py --env docs.experiments.matching:continuous

It needs no memory and no planning, so that what fails here fails for its scale or its kind of action.
"""

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, PRNGKeyArray

from envs import ActionSpace, Environment, ObsSpace, State, Timestep

ROUNDS = 10


class Matching(Environment):
    """Each round pays `reward` at best: for the symbol that is shown, or for closeness to the point that is shown.

    Discrete: the observation is a one-hot symbol [A]; the same action pays `reward`, another 0. Continuous: the
    observation is a point [A] in [-1, 1]; an action pays `reward` times 1 less its distance from the point, at least 0.
    The state is (the symbol or the point, rounds played).
    """

    time_limit = ROUNDS

    def __init__(self, action_space: ActionSpace, reward: float = 1.0):
        self.name, self.action_space, self.reward = f"Matching-{action_space.kind}", action_space, reward
        self.obs_space = ObsSpace((action_space.size,), "binary" if action_space.kind == "discrete" else "real")

    def reset(self, key: PRNGKeyArray) -> tuple[State, Timestep]:
        target, rounds = self._draw(key), jnp.zeros((), jnp.int32)
        return (target, rounds), self._timestep(target, jnp.zeros(()), rounds, is_first=True)

    def step(self, key: PRNGKeyArray, state: State, action: Array) -> tuple[State, Timestep]:
        target, rounds = self._draw(key), state[1] + 1
        return (target, rounds), self._timestep(target, self._pay(state[0], action), rounds, is_first=False)

    def _draw(self, key: PRNGKeyArray) -> Array:
        size = self.action_space.size
        if self.action_space.kind == "discrete":
            return jr.randint(key, (), 0, size)
        return jr.uniform(key, (size,), minval=-1.0, maxval=1.0)

    def _pay(self, target: Array, action: Array) -> Float[Array, ""]:
        if self.action_space.kind == "discrete":
            return self.reward * (action == target).astype(jnp.float32)
        distance = jnp.linalg.norm(jnp.clip(action, -1.0, 1.0) - target)
        return self.reward * jnp.maximum(1.0 - distance, 0.0)

    def _timestep(self, target: Array, reward: Float[Array, ""], rounds: Int[Array, ""], is_first: bool) -> Timestep:
        discrete = self.action_space.kind == "discrete"
        obs = jax.nn.one_hot(target, self.action_space.size, dtype=jnp.bool_) if discrete else target
        is_last = rounds == ROUNDS
        return Timestep(obs, reward, jnp.array(is_first), is_last, is_last)


def discrete(symbols: int = 4, reward: float = 1.0) -> Matching:
    """The game with as many actions as symbols; `reward` for a right answer."""
    return Matching(ActionSpace("discrete", symbols), reward)


def continuous(dimensions: int = 2, reward: float = 1.0) -> Matching:
    """The game with continuous actions; `reward` for an exact answer."""
    return Matching(ActionSpace("continuous", dimensions), reward)
