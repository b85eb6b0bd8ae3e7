"""Matrix products of one update of one seed: those that it needs, by hand, and those that a traced program executes.

`python tests/bench/flops.py` prints both for every size and mode (tracing only, seconds). Observations are vectors.

Needed is what is left after dead products are dropped and with nothing evaluated twice. With R = B T replayed rows:

    part                          forward   backward  into its input?
    encoder                       R         R         no (the first layer reads data)
    recurrent step, action's part R         R         no
    recurrent step, all else      R         R         yes
    posterior, prior, decoder     R         R         yes
    reward and continue           R         R         yes; no in mode explore, which stops the gradient
    critic, replayed rows        B (T-1)   B (T-1)   as the heads; never for the explorer's
    slow critic, replayed rows   B (T-1)
    imagined steps                H R
    actor, imagined               H R       H R       no
    critic, imagined             (H+1) R   H R       no
    slow critic, imagined        H R
    reward, imagined              H R
    continue, imagined            (H+1) R
    ensemble, replayed rows       B (T-1)   B (T-1)   no; no gradient here with updates of its own
    ensemble, imagined            H R
    ensemble, own updates         their rows          no
    priors, and the decoder where members read what it makes: wherever the ensemble is evaluated

Trajectories and critics are there once for each behaviour (imagined rewards only for one that is paid them). A backward
pass costs twice a forward one: the gradients of weights and of inputs. What a scan sends back out of a window's first
step goes nowhere, but is counted: any scan computes it.

The reference's way (`parts(..., reference=True)`) differs in three places, each of which its program does execute: the
actor is evaluated twice in imagination (to act, and for its loss), heads, actor and critics read all H + 1 states, and
the replayed critics all T rows. That gives 1.03 GFLOP for micro, 29.0 for 1m and 428.6 for 12m, which is to the last
digit what its traced update executes. Results of all other operations, moved data included, are counted as `elements`.
"""

import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
from jax.interpreters import partial_eval

# ---- needed --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Part:
    """Layers that are evaluated on the same rows: multiply-adds of each layer for one row, the first layer first."""

    name: str
    layers: tuple[int, ...]
    forward: int
    backward: int = 0
    into: bool = True  # whether a gradient goes on into the first layer's input
    copies: int = 1  # members

    @property
    def flop(self) -> int:
        """A multiply-add is two operations."""
        each = sum(self.layers)
        back = 2 * each - (0 if self.into else self.layers[0])
        return 2 * self.copies * (self.forward * each + self.backward * back)


def stack(inputs: int, units: int, depth: int, outputs: int = 0) -> tuple[int, ...]:
    """An MLP of `depth` layers, and a linear output if there is one."""
    sizes = [inputs] + [units] * depth + ([outputs] if outputs else [])
    return tuple(i * o for i, o in itertools.pairwise(sizes))


def parts(config: Any, obs: int, actions: int, reference: bool = False) -> list[Part]:
    """Every part of an update, for a vector of `obs` numbers and `actions` discrete actions."""
    m, batch, length = config.model, config.replay.batch_size, config.replay.batch_length
    latent = m.stoch * m.classes
    feat, rows, imagined = m.deter + latent, batch * length, config.horizon * batch * length
    states = imagined + rows
    read = states if reference else imagined  # imagined states that heads and losses read
    followed = rows if reference else batch * (length - 1)  # rows that have a successor
    exploring, reward_free = config.mode != "task", config.mode == "explore"

    carried = (m.deter * m.hidden, latent * m.hidden)
    gru = ((m.deter + 3 * m.hidden * m.blocks) * m.deter // m.blocks, 3 * m.deter * m.deter // m.blocks)
    prior = stack(m.deter, m.hidden, 2, latent)
    step = (*carried, actions * m.hidden, *gru, *prior)
    actor, critic = stack(feat, m.units, m.layers, actions), stack(feat, m.units, m.layers, m.bins)
    reward, cont = stack(feat, m.units, 1, m.bins), stack(feat, m.units, 1, 1)

    found = [
        Part("encoder", stack(obs, m.units, m.layers), rows, rows, into=False),
        Part("action's part", (actions * m.hidden,), rows, rows, into=False),
        Part("recurrent step", (*carried, *gru), rows, rows),
        Part("posterior", stack(m.deter + m.units, m.hidden, 1, latent), rows, rows),
        Part("prior", prior, rows, rows),
        Part("decoder", stack(feat, m.units, m.layers, obs), rows, rows),
        Part("reward", reward, rows, rows, into=not reward_free),
        Part("continue", cont, rows, rows, into=not reward_free),
    ]

    def behavior(name: str, predicted: bool, into: bool) -> list[Part]:
        return [
            Part(f"{name}: imagined steps", step, imagined),
            Part(f"{name}: actor", actor, 2 * read if reference else read, read, into=False),
            Part(f"{name}: critic's values", critic, states - read),
            Part(f"{name}: critic, imagined", critic, read, read, into=False),
            Part(f"{name}: slow critic, imagined", critic, read),
            Part(f"{name}: predicted rewards", reward, read if predicted else 0),
            Part(f"{name}: predicted continues", cont, states),
            Part(f"{name}: critic, replayed", critic, followed, followed, into=into),
            Part(f"{name}: slow critic, replayed", critic, followed),
        ]

    found += behavior("tasker", True, not reward_free)
    if exploring:
        found += behavior("explorer", False, False)
        found += _ensemble(config, obs, actions, followed, imagined)
    return found


def _ensemble(config: Any, obs: int, actions: int, followed: int, imagined: int) -> list[Part]:
    """Disagreement on replayed rows and in imagination, and the members' loss there or their own updates."""
    m, e = config.model, config.ensemble
    latent = m.stoch * m.classes
    sizes = {"probs": latent, "projected": e.projection}
    inputs = {"feat": m.deter + latent, "decoded": obs, "projected": e.projection}[e.input] + actions
    width, size = e.units or m.units, sizes[e.target]
    member = stack(inputs, width, e.layers, size)
    decoder, own = stack(m.deter + latent, m.units, m.layers, obs), e.updates * e.batch_size
    found = []
    for name, rows, learned in (
        ("replayed", followed, 0 if own else followed),
        ("imagined", imagined, 0),
        ("own updates", own, own),
    ):
        found.append(Part(f"ensemble, {name}", member, rows, learned, into=False, copies=e.members))
        if e.prior_layers:
            found.append(Part(f"priors, {name}", stack(inputs, width, e.prior_layers, size), rows, copies=e.members))
        if e.input != "feat":
            found.append(Part(f"decoder, {name} of the ensemble", decoder, rows))
        times = (e.input == "projected") + (e.target == "projected" and learned > 0)
        found.append(Part(f"projection, {name}", (obs * e.projection,) * times, rows))
    return [part for part in found if part.forward]


def needed(config: Any, obs: int, actions: int, reference: bool = False) -> int:
    """Operations in the matrix products of one update of one seed."""
    return sum(part.flop for part in parts(config, obs, actions, reference))


# ---- executed ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Count:
    """What a program executes: operations in matrix products and convolutions, and results of all else."""

    products: int = 0
    elements: int = 0

    def __add__(self, other: "Count") -> "Count":
        return Count(self.products + other.products, self.elements + other.elements)

    def __mul__(self, times: int) -> "Count":
        return Count(self.products * times, self.elements * times)


def executed(fn: Any, *args: Any) -> Count:
    """What `fn` executes on arrays shaped like `args`, after jax's own elimination of dead code. Traces only."""
    return count(alive(jax.make_jaxpr(fn)(*args)))


def alive(closed: Any) -> Any:
    """The jaxpr without equations that no output needs."""
    return partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))[0]


def count(jaxpr: Any) -> Count:
    """Sums over a jaxpr and all jaxprs inside it: scans times their length, conditions at their dearest branch."""
    return functools.reduce(Count.__add__, map(_equation, jaxpr.eqns), Count())


def _equation(eqn: Any) -> Count:
    name, size = eqn.primitive.name, sum(math.prod(v.aval.shape) for v in eqn.outvars if hasattr(v.aval, "shape"))
    if name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return Count(products=2 * size * math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted))
    if name == "conv_general_dilated":
        kernel = eqn.invars[1].aval.shape
        outputs = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
        return Count(products=2 * size * math.prod(kernel) // outputs)
    inner = [count(jaxpr) for jaxpr in _inside(eqn)]
    if name == "cond":
        return max(inner, key=lambda c: c.products)
    if inner:  # a while loop counts once: how often it turns is not known here
        return functools.reduce(Count.__add__, inner) * eqn.params.get("length", 1)
    return Count(elements=size)


def _inside(eqn: Any) -> list[Any]:
    """The jaxprs among an equation's parameters, opened."""
    values = [v for p in eqn.params.values() for v in (p if isinstance(p, (tuple, list)) else (p,))]
    opened = [getattr(v, "jaxpr", v) for v in values]
    return [v for v in opened if hasattr(v, "eqns")]


def executed_update(config: Any, hypers: Any, env: Any) -> Count:
    """What `stages.train.update` executes for one seed."""
    from stages import train
    from stages.replay import StepCounters

    state = jax.eval_shape(lambda key: train.init(env, config, hypers, key=key), jax.random.key(0))
    return executed(functools.partial(train.update, config), state, jax.eval_shape(StepCounters.zero))


def main() -> None:
    import common  # here and not above: the reference's interpreter imports this file too, and has none of ours
    import made_up
    import sizes

    rows = []
    for size in sizes.MODELS:
        for mode in ("task", "explore", "mix"):
            config, hypers = made_up.configuration(size, mode)
            found = executed_update(config, hypers, made_up.Vector())
            hand = needed(config, sizes.OBS, sizes.ACTIONS)
            theirs = needed(config, sizes.OBS, sizes.ACTIONS, reference=True) if mode == "task" else 0
            row = {"size": size, "mode": mode, "needed_gflop": hand / 1e9, "executed_gflop": found.products / 1e9}
            row |= {"executed/needed": found.products / hand, "elements_million": found.elements / 1e6}
            rows.append(common.emit(row | {"reference_way_gflop": theirs / 1e9 or None}))
    common.table(rows)


if __name__ == "__main__":
    main()
