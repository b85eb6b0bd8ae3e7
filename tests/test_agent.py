"""stages/agent.py: sizes equal to the reference's, and what starts equal or apart."""

import dataclasses
import itertools

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from envs.environment import ActionSpace, ObsSpace
from stages.agent import Agent, Targets, Turns, collector, parameter_counts, trainable
from stages.config import Config, EnsembleConfig
from stages.presets import preset

close = chex.assert_trees_all_close
OBS, ACTIONS = ObsSpace((50,), "real"), ActionSpace("discrete", 3)
LEAVES = jax.tree_util.tree_leaves_with_path


def shapes_of(config: Config, obs: ObsSpace = OBS, actions: ActionSpace = ACTIONS) -> Agent:
    """The agent's shapes; no number is drawn."""
    return jax.eval_shape(lambda key: Agent(config, obs, actions, key=key), jr.key(0))


# ---- sizes ---------------------------------------------------------------------------------------------------------


def test_parameters_of_size_1m_by_part():
    assert parameter_counts(shapes_of(preset("1m")[0])) == {
        "model.rssm": 364_224,
        "model.encoder": 11_776,
        "model.decoder": 52_786,
        "model.reward": 57_663,
        "model.cont": 41_153,
        "tasker.actor": 49_731,
        "tasker.critic": 66_111,
    }


@pytest.mark.parametrize("name, total", [("1m", 643_444), ("12m", 9_748_276), ("micro", 223_604)])
def test_parameters_in_total(name, total):
    agent = shapes_of(preset(name)[0])
    assert sum(parameter_counts(agent).values()) == total == sum(x.size for x in jax.tree.leaves(agent))


@pytest.mark.parametrize("mode", ["explore", "mix"])
def test_parameters_of_exploration(mode):
    config = dataclasses.replace(preset("1m")[0], mode=mode)
    counts = parameter_counts(shapes_of(config))
    assert counts["tasker.critic"] == 66_111
    assert counts["explorer.actor"] == counts["tasker.actor"]
    assert counts["explorer.critic"] == counts["tasker.critic"]
    feat, units, outputs = 512 + 32 * 4, 64, 32 * 4
    member = (feat + 3) * units + 2 * units + units * units + 2 * units + units * outputs + outputs
    assert counts["intrinsic.ensemble"] == config.ensemble.members * member  # no priors, no projection


def test_parameters_of_decoded_input_fixed_target_and_priors():
    ensemble = EnsembleConfig(
        members=5, layers=2, units=16, input="decoded", target="projected", projection=32, prior_layers=1
    )
    counts = parameter_counts(shapes_of(dataclasses.replace(preset("1m")[0], mode="explore", ensemble=ensemble)))
    first, last = (50 + 3) * 16 + 2 * 16, 16 * 32 + 32
    members, priors, projection = 5 * (first + 16 * 16 + 2 * 16 + last), 5 * (first + last), 50 * 32
    assert counts["intrinsic.ensemble"] == members + priors + projection


def test_the_optimiser_does_not_move_the_range_of_rewards(config):
    agent = shapes_of(dataclasses.replace(config, mode="task", enlarge_rewards=True))
    trained, fixed = eqx.partition(agent, trainable(agent))
    assert jax.tree.leaves(trained.model.reward_range) == []
    assert len(jax.tree.leaves(fixed)) == len(jax.tree.leaves(fixed.model.reward_range)) == 2
    without = shapes_of(dataclasses.replace(config, mode="task"))
    assert without.model.reward_range is None and parameter_counts(agent) == parameter_counts(without)


def test_every_leaf_is_a_float32_array(mix_agent):
    assert all(isinstance(x, jax.Array) and x.dtype == jnp.float32 for x in jax.tree.leaves(mix_agent))


# ---- parts ---------------------------------------------------------------------------------------------------------


def test_modes_have_the_parts_that_they_need(config):
    task, explore, mix = (shapes_of(dataclasses.replace(config, mode=m)) for m in ("task", "explore", "mix"))
    assert task.explorer is None and task.intrinsic is None and jax.eval_shape(Targets.of, task).explorer is None
    behaviors = [task.tasker, explore.tasker, explore.explorer, mix.tasker, mix.explorer]
    chex.assert_shape([behavior.critic.head.out.bias for behavior in behaviors], (config.model.bins,))


def test_who_collects(mix_agent):
    assert collector(mix_agent, "task") is mix_agent.tasker
    assert collector(mix_agent, "explore") is mix_agent.explorer
    turns = collector(mix_agent, "mix")
    assert isinstance(turns, Turns) and turns.explorer is mix_agent.explorer and turns.tasker is mix_agent.tasker
    adapted = eqx.tree_at(lambda a: (a.explorer, a.intrinsic), mix_agent, (None, None))
    assert collector(adapted, "mix") is adapted.tasker


def stacked_weights(agent: Agent):
    """(name, weight) of every matrix that has a leading axis of members."""
    for path, leaf in LEAVES(agent.intrinsic):
        if leaf.ndim == 3:
            yield jax.tree_util.keystr(path), np.asarray(leaf)


def test_members_differ_at_the_start(mix_agent):
    for name, weight in stacked_weights(mix_agent):
        for one, other in itertools.combinations(weight, 2):
            correlation = np.corrcoef(one.ravel(), other.ravel())[0, 1]
            assert abs(correlation) < 0.6, f"{name}: correlation {correlation}"


def test_explorer_and_tasker_differ_at_the_start(mix_agent):
    one, other = (b.actor.head.mlp.layers[0].linear.weight for b in (mix_agent.explorer, mix_agent.tasker))
    assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.5


def test_slow_critics_start_as_the_critics(mix_agent, mix_targets):
    chex.assert_trees_all_equal(mix_targets.explorer.slow, mix_agent.explorer.critic)
    chex.assert_trees_all_equal(mix_targets.tasker.slow, mix_agent.tasker.critic)
    chex.assert_trees_all_equal(*[jax.tree.leaves(mix_targets.tasker.scale), [jnp.zeros(())] * 3])
