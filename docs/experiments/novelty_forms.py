"""Forms of the novelty signal: networks that learn beside a world model, and statistics of the rows that it saw.

A `Form` is trained beside the snapshots of a world model. `Kernel` and `Fourier` answer from the last snapshot alone.
Axes: R rows looked at, P numbers of an observation, A action vector, U actions.
"""

import dataclasses
import math
from typing import TYPE_CHECKING, Any, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from docs.experiments.novelty_tasks import Looked
from envs.environment import Environment
from stages import optimizer
from stages.cli.parse import parse
from stages.config import Config, Hypers
from stages.decode import decode_mean
from stages.encode import preprocess_obs, preprocessed_shape
from stages.ensemble import Ensemble, disagreement, ensemble_loss, init_opt_state, update_ensemble
from stages.fast.stacked import Stacked
from stages.networks.layers import Head
from stages.obs_numbers import RunningNormalizer
from stages.replay import Row
from stages.rssm import Latent, imagine_step
from stages.world_model import Observed, WorldModel, action_vector

if TYPE_CHECKING:  # it imports this file
    from docs.experiments.novelty_signal import ModelRun

# ---- forms of novelty ----------------------------------------------------------------------------------------------


class Form(Protocol):
    """A network or a statistic that says how new a pair is."""

    updates: int  # for each of the model's; 0: it learns in the model's batch, which a Preset alone does

    def init(self, env: Environment, base: Config, *, key: PRNGKeyArray) -> Any: ...

    def learn(self, state: Any, model: WorldModel, pairs: Row) -> Any: ...

    def novelty(
        self, state: Any, model: WorldModel, latent: Latent, seen: Float[Array, "R P"], action: Float[Array, "R A"]
    ) -> Float[Array, " R"]: ...


@dataclasses.dataclass(frozen=True)
class Preset:
    """A form that the program has, by words of run.py beyond those of the run."""

    words: str

    @property
    def parsed(self) -> tuple[Config, Hypers]:
        arguments = parse(["--preset", "tiny", "--mode", "explore", *self.words.split()])
        return arguments.config, arguments.hypers

    @property
    def updates(self) -> int:
        return self.parsed[0].ensemble.updates

    def init(self, env: Environment, base: Config, *, key: PRNGKeyArray) -> Any:
        config = dataclasses.replace(base, ensemble=self.parsed[0].ensemble)
        ensemble = Ensemble(config, env.obs_space, env.action_space.size, key=key)
        hypers = self.parsed[1]
        moments = init_opt_state(ensemble, hypers) if self.updates else optimizer.optimizer(hypers).init(ensemble)
        return ensemble, moments

    def learn(self, state: Any, model: WorldModel, pairs: Row) -> Any:
        return update_ensemble(*state, model, pairs, self.parsed[1])[:2]

    def learn_with_model(self, state: Any, model: WorldModel, observed: Observed, rows: Row, action: Array) -> Any:
        ensemble, moments = state
        hypers = self.parsed[1]
        loss = lambda e: ensemble_loss(e, model, observed, rows, action, hypers).mean()
        updates, moments = optimizer.optimizer(hypers).update(jax.grad(loss)(ensemble), moments, ensemble)
        return eqx.apply_updates(ensemble, updates), moments

    def novelty(self, state, model, latent, seen, action):
        del seen
        return disagreement(state[0], model, latent.feat, action, self.parsed[1])


class VariantState(eqx.Module):
    """What a variant learns and keeps."""

    members: Stacked
    start: Stacked  # the members before they learned
    prior: Stacked  # frozen; of no hidden layers where prior_layers is 0
    projection: Float[Array, "P Q"]
    waves: Float[Array, "P W"]
    standard: RunningNormalizer
    moments: Any


VARIANT_OPTIMIZER = optax.chain(optax.scale_by_adam(b1=0.9, b2=0.99), optax.scale_by_learning_rate(2e-3))


@dataclasses.dataclass(frozen=True)
class Variant:
    """A throw-away ensemble with what the program has not; the defaults are the preset's."""

    input: str = "decoded"  # decoded, projected, fourier, feat, deter; observed: what no imagined state has
    entries: str = "level"  # level: the whole at a mean square of 1; standard: each entry by what was seen
    floor: float = 1e-2  # of an entry's variance, where it is standardised
    target: str = "next"  # next; change: next minus current; zero: nothing, as in RND
    coupling: str = "concat"  # concat; heads: outputs of each action; outer: input times action
    ratio: bool = False  # divided by what the untrained members show there
    action_scale: float = 10.0
    units: int = 64
    layers: int = 2
    prior_layers: int = 1
    prior_scale: float = 1.0
    projection: int = 32
    frequencies: int = 128  # of input fourier: sines and cosines of so many random projections
    bandwidth: float = 4.5  # times their root mean square of 1; exp(-10 d^2) is their kernel, d^2 a mean over entries
    members: int = 5
    updates: int = 2

    def init(self, env: Environment, base: Config, *, key: PRNGKeyArray) -> VariantState:
        key_members, key_prior, key_projection = jr.split(key, 3)
        pixels, actions = math.prod(preprocessed_shape(env.obs_space)), env.action_space.size
        sizes = {
            "decoded": pixels,
            "observed": pixels,
            "projected": self.projection,
            "fourier": 2 * self.frequencies,
            "feat": base.model.feat,
            "deter": base.model.deter,
        }
        size = sizes[self.input]
        inputs = {"concat": size + actions, "heads": size, "outer": (size + 1) * actions}[self.coupling]
        outputs = self.projection * (actions if self.coupling == "heads" else 1)
        make = lambda layers, key: Stacked(
            lambda k: Head(inputs, self.units if layers else inputs, layers, outputs, key=k),
            jr.split(key, self.members),
        )
        members = make(self.layers, key_members)
        projection = jr.normal(key_projection, (pixels, self.projection))
        waves = jr.normal(jr.fold_in(key_projection, 0), (pixels, self.frequencies))
        moments = VARIANT_OPTIMIZER.init(members)
        return VariantState(
            members,
            members,
            make(self.prior_layers, key_prior),
            projection,
            waves,
            RunningNormalizer.zero(pixels),
            moments,
        )

    def scaled(self, state: VariantState, numbers: Float[Array, "... P"]) -> Float[Array, "... P"]:
        """An observation's numbers, levelled or standardised."""
        if self.entries == "level":
            return numbers * math.sqrt(numbers.shape[-1]) / jnp.sqrt(jnp.square(numbers).sum(-1, keepdims=True) + 0.01)
        weight = jnp.maximum(state.standard.weight, 1e-8)
        mean = state.standard.mean / weight
        variance = jnp.maximum(state.standard.square / weight - jnp.square(mean), 0)
        return (numbers - mean) / jnp.sqrt(variance + self.floor)

    def project(self, state: VariantState, numbers: Float[Array, "... P"]) -> Float[Array, "... Q"]:
        """Of a mean square of 1 where the entries that vary have one."""
        scale = math.sqrt(numbers.shape[-1])
        if self.entries == "standard":
            weight = jnp.maximum(state.standard.weight, 1e-8)
            variance = jnp.maximum(state.standard.square / weight - jnp.square(state.standard.mean / weight), 0)
            scale = jnp.sqrt(jnp.maximum((variance / (variance + self.floor)).sum(), 1.0))
        return numbers @ state.projection / scale

    def inputs(
        self, state: VariantState, model: WorldModel, latent: Latent, seen: Float[Array, "n P"], action: Array
    ) -> Array:
        """What members read."""
        if self.input in ("feat", "deter"):
            read = latent.feat if self.input == "feat" else latent.deter
        else:
            numbers = seen if self.input == "observed" else decode_mean(model.decoder, latent)
            read = self.scaled(state, numbers)
            if self.input == "projected":
                read = self.project(state, read)
            elif self.input == "fourier":
                angle = self.bandwidth * (read @ state.waves) / math.sqrt(read.shape[-1])
                read = math.sqrt(2) * jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)
        match self.coupling:
            case "concat":
                return jnp.concatenate([read, self.action_scale * action], -1)
            case "heads":
                return read
            case _:
                read = jnp.concatenate([read, jnp.ones_like(read[..., :1])], -1)
                return (read[..., None] * action[..., None, :]).reshape(*read.shape[:-1], -1)

    def predict(self, members: Stacked, state: VariantState, inputs: Array, action: Array) -> Float[Array, "M n Q"]:
        """Members with their priors."""
        out = members.map(lambda m: m(inputs)) + self.prior_scale * state.prior.map(lambda m: m(inputs))
        if self.coupling == "heads":
            out = jnp.einsum("mnqa,na->mnq", out.reshape(*out.shape[:2], self.projection, -1), action)
        return out

    def learn(self, state: VariantState, model: WorldModel, pairs: Row) -> VariantState:
        latent = Latent.stored(pairs.deter, pairs.stoch, model.rssm.classes, model.dtype)
        action = action_vector(model, pairs.action)[0]
        seen = preprocess_obs(model.decoder.space, pairs.obs).reshape(*pairs.is_first.shape, -1)
        state = eqx.tree_at(lambda s: s.standard, state, state.standard.updated(seen[1]))
        inputs = self.inputs(state, model, jax.tree.map(lambda x: x[0], latent), seen[0], action)
        now, after = self.project(state, self.scaled(state, seen))
        target = {"next": after, "change": after - now, "zero": jnp.zeros_like(after)}[self.target]

        def loss(members):
            error = 0.5 * jnp.square(self.predict(members, state, inputs, action) - target).sum(-1)
            return jnp.where(pairs.is_first[1], 0.0, error).mean(1).sum()

        updates, moments = VARIANT_OPTIMIZER.update(jax.grad(loss)(state.members), state.moments)
        members = eqx.apply_updates(state.members, updates)
        return eqx.tree_at(lambda s: (s.members, s.moments), state, (members, moments))

    def novelty(self, state, model, latent, seen, action):
        inputs = self.inputs(state, model, latent, seen, action)

        def spread(members):
            out = self.predict(members, state, inputs, action)
            return jnp.square(out).mean((0, -1)) if self.target == "zero" else jnp.var(out - out[:1], 0).mean(-1)

        return spread(state.members) / (spread(state.start) + 1e-6) if self.ratio else spread(state.members)


class NextRND(eqx.Module):
    """RND's networks on the next observation."""

    predictor: Head
    target: Head
    standard: RunningNormalizer
    moments: Any


@dataclasses.dataclass(frozen=True)
class RND:
    """Random network distillation (arXiv 1810.12894) of the next observation: replayed to learn, imagined to ask."""

    updates: int = 2
    units: int = 64
    size: int = 32

    def init(self, env: Environment, base: Config, *, key: PRNGKeyArray) -> NextRND:
        del base
        pixels = math.prod(preprocessed_shape(env.obs_space))
        key_predictor, key_target = jr.split(key)
        predictor = Head(pixels, self.units, 2, self.size, key=key_predictor)
        target = Head(pixels, self.units, 1, self.size, key=key_target)
        return NextRND(predictor, target, RunningNormalizer.zero(pixels), VARIANT_OPTIMIZER.init(predictor))

    def scaled(self, state: NextRND, numbers: Array) -> Array:
        """Standardised and clipped, as in the source."""
        weight = jnp.maximum(state.standard.weight, 1e-8)
        mean = state.standard.mean / weight
        variance = jnp.maximum(state.standard.square / weight - jnp.square(mean), 0)
        return jnp.clip((numbers - mean) / jnp.sqrt(variance + 1e-4), -5, 5)

    def learn(self, state: NextRND, model: WorldModel, pairs: Row) -> NextRND:
        seen = preprocess_obs(model.decoder.space, pairs.obs[1]).reshape(pairs.is_first.shape[1], -1)
        state = eqx.tree_at(lambda s: s.standard, state, state.standard.updated(seen))
        x = self.scaled(state, seen)
        loss = lambda predictor: jnp.square(predictor(x) - state.target(x)).sum(-1).mean()
        updates, moments = VARIANT_OPTIMIZER.update(jax.grad(loss)(state.predictor), state.moments)
        changed = (eqx.apply_updates(state.predictor, updates), moments)
        return eqx.tree_at(lambda s: (s.predictor, s.moments), state, changed)

    def novelty(self, state, model, latent, seen, action):
        del seen
        noise = jr.uniform(jr.key(0), (4, *action.shape[:1], model.rssm.stoch))

        def error(uniform):
            after = imagine_step(model.rssm, latent, action, uniform, 0.01)
            x = self.scaled(state, decode_mean(model.decoder, after))
            return jnp.square(state.predictor(x) - state.target(x)).mean(-1)

        return lax.map(error, noise).mean(0)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """The variance of a Gaussian process, over its prior: an ensemble of any width whose learning is perfect.

    1 - k(x, X) (k(X, X) + ridge)^-1 k(X, x) is in (0, 1]. Each action has a process of its own, so one that was never
    tried gets 1 everywhere. What is left to choose is what it reads, and how fast it forgets that two states are alike.
    """

    input: str = "decoded"  # observed: the true observation, which no imagined state has; decoded, feat
    standard: bool = False  # each entry by what was seen
    width: float = 0.25  # of exp(-d^2 / 2 width^2), in median distances; 0: the cosine
    ridge: float = 1.0

    def answer(self, env: Environment, run: "ModelRun", latent: Latent, looked: Looked) -> np.ndarray:
        """The variance of every action at the rows looked at, [R, U]."""
        data, model = run.data, run.snapshots[-1].model
        match self.input:
            case "observed":
                read = preprocess_obs(env.obs_space, jnp.asarray(data.streams.obs))
            case "decoded":
                read = decode_mean(model.decoder, latent)
            case _:
                read = latent.feat
        x = np.asarray(read, np.float64).reshape(*data.kept.shape, -1)
        if self.standard:
            x = (x - x[data.kept].mean(0)) / np.sqrt(x[data.kept].var(0) + 1e-2)
        asked = x[tuple(looked.where.T)]
        width = self.width * np.sqrt(np.median(_squares(asked[:256], x[data.kept][:256])))

        def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            if self.width:
                return np.exp(-_squares(a, b) / (2 * width**2))
            return _unit(a) @ _unit(b).T

        found = []
        for action in range(data.counts.shape[1]):
            tried = x[data.tried & (data.action == action)]
            across = kernel(asked, tried)
            solved = np.linalg.solve(kernel(tried, tried) + self.ridge * np.eye(len(tried)), across.T)
            found.append(1 - (across * solved.T).sum(1))
        return np.stack(found, 1)


@dataclasses.dataclass(frozen=True)
class Fourier:
    """Kernel's variance with random Fourier features of the levelled decoded observation in place of the kernel.

    ridge phi' (sum of phi phi' over the rows of the action + ridge)^-1 phi, phi = sines and cosines of random
    projections (Rahimi and Recht 2007): a matrix of each action, whatever the number of rows and of entries.
    """

    frequencies: int = 128
    bandwidth: float = 9.0  # of the projections, whose mean square is 1
    ridge: float = 0.1

    def answer(self, env: Environment, run: "ModelRun", latent: Latent, looked: Looked) -> np.ndarray:
        """The variance of every action at the rows looked at, [R, U]."""
        del env
        data, model = run.data, run.snapshots[-1].model
        x = np.asarray(decode_mean(model.decoder, latent), np.float64).reshape(*data.kept.shape, -1)
        x /= np.sqrt(np.square(x).mean(-1, keepdims=True) + 0.01 / x.shape[-1])
        waves = np.random.default_rng(0).normal(size=(x.shape[-1], self.frequencies)) / math.sqrt(x.shape[-1])
        angle = self.bandwidth * x @ waves
        phi = np.concatenate([np.sin(angle), np.cos(angle)], -1) / math.sqrt(self.frequencies)
        asked, found = phi[tuple(looked.where.T)], []
        for action in range(data.counts.shape[1]):
            tried = phi[data.tried & (data.action == action)]
            solved = np.linalg.solve(tried.T @ tried + self.ridge * np.eye(phi.shape[-1]), asked.T)
            found.append(self.ridge * (asked * solved.T).sum(1))
        return np.stack(found, 1)


def _squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances, [len(a), len(b)]."""
    return np.square(a).sum(1)[:, None] + np.square(b).sum(1)[None] - 2 * a @ b.T


def _unit(x: np.ndarray) -> np.ndarray:
    return x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-8)


PROJECTED = "--ensemble.input projected"
PUBLISHED = (
    "--ensemble.input feat --ensemble.target probs --ensemble.updates 0 --ensemble.prior-layers 0 "
    "--ensemble.spread std --ensemble.members 8 --hypers.action-scale 1"
)
LINEAR: dict[str, Any] = {"input": "fourier", "coupling": "heads", "layers": 0, "prior_layers": 0}
LINEAR |= {"frequencies": 64, "projection": 8, "updates": 1}
VARIANTS: dict[str, dict[str, Any]] = {
    "ratio": {"ratio": True},
    "change": {"target": "change"},
    "standard": {"entries": "standard"},
    "standard-change": {"entries": "standard", "target": "change"},
    "standard-projected": {"entries": "standard", "target": "change", "input": "projected"},
    "heads": {"coupling": "heads"},
    "heads-standard-change": {"coupling": "heads", "entries": "standard", "target": "change"},
    "projected-outer": {"input": "projected", "coupling": "outer"},
    "feat-standard": {"input": "feat", "entries": "standard"},
    "feat-heads-standard": {"input": "feat", "entries": "standard", "coupling": "heads"},
    "deter-standard": {"input": "deter", "entries": "standard"},
    "deter-outer-standard": {"input": "deter", "entries": "standard", "coupling": "outer"},
    "observed": {"input": "observed"},
    "observed-standard": {"input": "observed", "entries": "standard"},
    "observed-heads": {"input": "observed", "coupling": "heads"},
    "observed-heads-standard-change": {
        "input": "observed",
        "entries": "standard",
        "coupling": "heads",
        "target": "change",
    },
    "fourier": {"input": "fourier"},
    "fourier-heads": {"input": "fourier", "coupling": "heads"},
    "fourier-linear": LINEAR,
    "fourier-linear-ratio": LINEAR | {"ratio": True},
    "fourier-linear-wide": LINEAR | {"bandwidth": 9.0},
    "decoded-linear": LINEAR | {"input": "decoded"},
    "rnd": {"target": "zero"},
    "rnd-standard": {"target": "zero", "entries": "standard"},
    "rnd-feat": {"target": "zero", "input": "feat"},
}
FORMS: dict[str, "Form | Kernel | Fourier"] = {
    "preset": Preset(""),
    "published": Preset(PUBLISHED),
    "feat": Preset("--ensemble.input feat"),
    "projected": Preset(PROJECTED),
    "no-prior": Preset(f"{PROJECTED} --ensemble.prior-layers 0"),
    "action-1": Preset(f"{PROJECTED} --hypers.action-scale 1"),
    "updates-8": Preset(f"{PROJECTED} --ensemble.updates 8"),
    "projection-128": Preset(f"{PROJECTED} --ensemble.projection 128"),
    "wide": Preset(f"{PROJECTED} --ensemble.units 256"),
    **{name: Variant(**choices) for name, choices in VARIANTS.items()},
    "rnd-next": RND(),
    **{f"fourier-{k}-{b}": Fourier(k, float(b)) for k in (64, 128) for b in (3, 6, 9)},
    "kernel-observed": Kernel("observed"),
    "kernel-decoded": Kernel("decoded"),
    "kernel-feat": Kernel("feat", standard=True),
    "linear-observed": Kernel("observed", width=0),
    "linear-decoded": Kernel("decoded", width=0),
    "linear-feat": Kernel("feat", standard=True, width=0),
}
