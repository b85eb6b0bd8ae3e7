"""Policy: a trained agent in a loop of one's own.

    policy = policy_of(agents, seed=0)
    state = policy.reset()
    action, state = policy.act(state, obs, is_first, key=key)

Both are pure functions of their arguments, and Policy and PolicyState are pytrees of arrays: they may be jitted,
scanned and vmapped. Axes: S seeds, N environments, A action vector; "..." are the axes that `reset` was asked for.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from stages.behavior import Behavior
from stages.collect import act, env_action
from stages.config import ConfigError, Hypers
from stages.rssm import Latent, initial
from stages.runs.load import POLICIES, Trained, player_of, take_seeds
from stages.uniform import Uniform
from stages.world_model import WorldModel


class PolicyState(eqx.Module):
    """What an agent remembers between two rows of an environment."""

    latent: Latent  # of the world model, at the row before
    action: Float[Array, "... A"]  # vector of the action taken there


class Policy(eqx.Module):
    """A trained agent that acts: its world model, and who of its behaviours plays.

    Of all seeds, each array has the axis S in front; then vmap over it:
    `jax.vmap(Policy.act)(policies, states, obs, is_first, key=keys)`.
    """

    model: WorldModel
    behavior: Behavior | Uniform
    hypers: Hypers
    greedy: bool = eqx.field(static=True)  # the likeliest action instead of a sample

    def reset(self, lead: tuple[int, ...] = ()) -> PolicyState:
        """The state before the first row, [*lead, ...]: () for one environment, (N,) for N, (S, N) for N of each seed.

        Once is enough: where an episode begins, `is_first` makes `act` forget the one before.
        """
        action = jnp.zeros((*lead, self.model.actions.size), self.model.dtype)
        return PolicyState(initial(self.model.rssm, lead, self.model.dtype), action)

    def act(
        self, state: PolicyState, obs: ArrayLike, is_first: ArrayLike, *, key: PRNGKeyArray
    ) -> tuple[Array, PolicyState]:
        """Look at a row and choose an action there.

        Args:
            state: of `reset`, or of `act` at the row before, whose action was really taken.
            obs: [..., *obs], of the shape and meaning that the agent was trained on; numpy will do.
            is_first: [...], whether the row begins an episode.
            key: of the samples of latent and action; a new one at each row.

        Returns:
            (action, state at this row). The action is an int32 index [...], or float32 [..., A] in [-1, 1]: rescale it
            to the range of the environment.

        Raises:
            ConfigError: obs or is_first has another shape.
        """
        lead, space = state.action.shape[:-1], self.model.encoder.space
        obs, is_first = jnp.asarray(obs), jnp.asarray(is_first, bool)
        if obs.shape != lead + space.shape or is_first.shape != lead:
            raise ConfigError(
                f"obs is {list(obs.shape)} and is_first {list(is_first.shape)}, but the agent was trained on "
                f"{list(space.shape)} and the state is of {list(lead)}: give {list(lead + space.shape)} and "
                f"{list(lead)}, or vmap over the seeds"
            )
        before = (state.latent, state.action, obs.astype(space.dtype), is_first)
        latent, action = act(self.model, self.behavior, *before, self.hypers, self.greedy, key=key)
        return env_action(self.model, action), PolicyState(latent, action)


def policy_of(agents: Trained, seed: int | None = None, *, policy: str = "task", greedy: bool | None = None) -> Policy:
    """The policy of one seed, or of all of them, [S, ...].

    Args:
        agents: what `train` or `load` returned.
        seed: its number; None: all.
        policy: who plays: the tasker ("task"), the explorer ("explore"), or uniformly random actions ("random").
        greedy: take the likeliest action instead of a sample; None: as the run's evaluation did.

    Raises:
        ConfigError: there is no such seed, or no such policy.
    """
    if policy not in POLICIES:
        raise ConfigError(f"policy must be one of {', '.join(POLICIES)}, not {policy!r}")
    if seed is not None and seed not in agents.seeds:
        raise ConfigError(f"there is no seed {seed}; choose one of {agents.seeds}")
    player = player_of(agents.agent, policy)
    greedy = agents.config.eval_greedy if greedy is None else greedy
    whole = Policy(agents.agent.model, player, agents.hypers, greedy)
    return whole if seed is None else take_seeds(whole, agents.seeds.index(seed))
