"""Events of episodes: counted on the device against numpy, added up on the host, scored as Crafter does.

Axes: T steps, N environments, S seeds.
"""

import dataclasses
import json
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from envs import EnvError, own
from envs.environment import ActionSpace, Environment, ObsSpace, Timestep
from stages.agent import Agent
from stages.collect import Episodes, collect, init_actor_state
from stages.log.events import EventLog, crafter_score
from stages.log.round_log import metric_rows
from stages.report.tables import event_table
from stages.results.read import Result
from stages.results.records import from_json, map_arrays
from stages.store.files import plain
from stages.train import Progress
from stages.uniform import RandomPolicy
from tests.conftest import arbitrary

T, N = 60, 3


class Corridor(Environment):
    """Cells 0 to 3, a step left or right; cell 3 ends an episode, and so do six steps. What happens: a bump into the
    left wall, a flag; steps on cell 2, a count of 2 for each, for the sake of the test."""

    name, time_limit, action_space = "Corridor", 6, ActionSpace("discrete", 2)
    obs_space = ObsSpace((), "categorical", 4)
    achievements = ("two",)

    def reset(self, key):
        zero = jnp.zeros((), jnp.int32)
        return (zero, zero), self.row(zero, True, jnp.array(False), jnp.array(False))

    def step(self, key, state, action):
        cell, time = jnp.clip(state[0] + 2 * action - 1, 0, 3), state[1] + 1
        return (cell, time), self.row(cell, False, (cell == 3) | (time == 6), (state[0] == 0) & (action == 0))

    def row(self, cell, first, last, bump):
        events = {"bump": bump, "two": 2 * (cell == 2).astype(jnp.int32)}
        return Timestep(cell, jnp.zeros(()), jnp.array(first), jnp.asarray(last), cell == 3, events)


def test_episodes_with_an_event_are_counted_as_by_hand(config, hypers):
    env = own.checked("corridor", Corridor())
    agent = arbitrary(lambda: Agent(config, env.obs_space, env.action_space, key=jr.key(0)))
    random = RandomPolicy(env.action_space)

    def step(carry, key):
        carry, row, episodes = collect(env, agent, random, carry, hypers, key=key)
        return carry, (row, episodes, carry.events)

    first = init_actor_state(env, agent.model, N, key=jr.key(1))
    _, (rows, episodes, running) = jax.jit(lambda c: jax.lax.scan(step, c, jr.split(jr.key(2), T)))(first)
    ended = dict.fromkeys(("bump", "two", "any"), 0)
    for n in range(N):
        counts = dict.fromkeys(("bump", "two"), 0)
        for t in range(T):
            cell, before = int(rows.obs[t, n]), int(rows.obs[t - 1, n])
            if not rows.is_first[t, n]:
                counts["bump"] += before == 0 and int(rows.action[t - 1, n]) == 0
                counts["two"] += 2 * (cell == 2)
            if rows.is_last[t, n]:
                ended = {name: ended[name] + (counts.get(name, 1) > 0) for name in ended}
                counts = dict.fromkeys(counts, 0)
            assert {name: int(count[t, n]) for name, count in running.items()} == counts
    assert ended["any"] > ended["bump"] > ended["two"] > 0
    assert int(episodes.count.sum()) == ended["any"]
    assert {name: int(count.sum()) for name, count in episodes.events.items()} == {
        name: ended[name] for name in ("bump", "two")
    }


def test_environments_without_events_carry_none(config, env, mix_agent):
    actor_state = init_actor_state(env, mix_agent.model, N, key=jr.key(0))
    assert actor_state.events == {} == actor_state.timestep.events


def test_events_are_checked():
    class Vector(Environment):
        name, time_limit, action_space = "Vector", 6, ActionSpace("discrete", 2)
        obs_space = ObsSpace((), "categorical", 4)

        def reset(self, key):
            state, timestep = Corridor().reset(key)
            return state, eqx.tree_at(lambda t: t.events["bump"], timestep, jnp.zeros(2))

        def step(self, key, state, action):
            return Corridor().step(key, state, action)

    with pytest.raises(EnvError, match="vector: events must be a dictionary of names with one flag or count each"):
        own.checked("vector", Vector())
    with pytest.raises(EnvError, match="'thre' is an achievement and no event; events are bump, two"):
        mistaken = Corridor()
        mistaken.achievements = ("thre",)
        own.checked("it", mistaken)


def test_crafters_score_by_hand():
    """Success of 0, 100 and 1 %: the logarithms of 1, 101 and 2."""
    rates = np.array([[0.0, 1.0], [1.0, 1.0], [0.01, 1.0]])
    np.testing.assert_allclose(crafter_score(rates), [(1 * 101 * 2) ** (1 / 3) - 1, 100.0], rtol=1e-12)


def rows_of(counts, shares):
    return [{"episode/count": n, "event/key": share} for n, share in zip(counts, shares, strict=True)]


def test_rows_of_metrics_and_what_they_add_up_to(config):
    """Two seeds: 1 of 2 and none of no episode; then 3 of 3 and 1 of 4."""
    each = [Episodes(*map(jnp.float32, (n, 0.0, n)), {"key": jnp.float32(had)}) for n, had in ((2, 1), (0, 0))]
    episodes = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    rows = metric_rows(Progress(episodes, {}, jnp.zeros(2, int)), [0, 1], config, 10, 1, 0.0)
    assert rows[0]["event/key"] == 0.5 and np.isnan(rows[1]["event/key"])
    log = EventLog()
    log.add(rows)
    log.add(rows_of([3, 4], [1.0, 0.25]))
    log = from_json(json.loads(json.dumps(plain(dataclasses.asdict(log)))), EventLog)
    np.testing.assert_allclose(log.rates()["key"], [4 / 5, 1 / 4])
    assert log.summary(()) == {"events": {"key": [0.8, 0.25]}}
    np.testing.assert_allclose(log.summary(("key",))["crafter_score"], [80.0, 25.0])
    assert log.lines(("key",)) == [
        "events, by share of 9 episodes: key 55.6% (of 1 events)",
        "Crafter's score: 52.50 %, mean over seeds",
    ]
    both = map_arrays(lambda *counts: np.concatenate(counts), log, map_arrays(lambda counts: counts[[1]], log))
    np.testing.assert_array_equal(both.episodes, [5, 4, 4])


def test_without_events_nothing_is_said():
    log = EventLog()
    log.add([{"episode/count": 3, "episode/score": 1.0}, {"episode/count": 5, "episode/score": 1.0}])
    assert log.summary(()) == {} and log.lines(()) == []


def test_compare_has_a_table_of_events():
    """A seed without an episode is null in summary.json; a run may lack an event, or all."""
    summaries = [
        {"events": {"key": [0.5, 1.0], "door": [0.0, None]}, "crafter_score": [3.0, 5.0]},
        {"events": {"key": [0.25, 0.25]}},
        {},
    ]
    runs = [
        Result(Path(), name, {}, summary, [0, 1], np.array([10]), ["task"], {})
        for name, summary in zip("abc", summaries, strict=True)
    ]
    [table] = event_table("it", runs)
    assert table.columns == ["event", "a", "b", "c"]
    assert table.rows == [
        ["key", "75.0", "25.0", "-"],
        ["door", "0.0", "-", "-"],
        ["Crafter's score", "4.00", "-", "-"],
    ]
    assert event_table("it", runs[2:]) == []
