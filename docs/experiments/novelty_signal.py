"""The novelty signal alone: which form of it tells (state, action) pairs never tried from pairs tried often?

    python docs/experiments/novelty_signal.py --tasks deepsea20 doorkey6-toggle --forms preset published counts
    python docs/experiments/novelty_signal.py --table

Uniformly random actions, and in a share of the episodes a scripted policy that takes the rare way, collect rows. Some
pairs are held out: an episode is cut where it first takes one, so the pair and all that lies beyond it are never
trained on. The world model is trained on the other rows without reward, and every form of novelty beside it. Then each
form says how new every action is in rows of each context (a cell of a map; what the agent faces and carries).

- AUC: the probability that a held-out pair, in a row whose state was seen, gets more than a pair tried often.
- ratio: the mean at held-out pairs over the mean at pairs tried often.
- correlation: Spearman's, of a pair's mean novelty and how often it was tried, over all pairs of the contexts seen.
- within: the share of the actions tried in the same context that get less than the held-out one, in the same row.
- beyond: AUC of the pairs taken after the cut, whose states were never seen either.

The tasks stand in novelty_tasks.py, the forms in novelty_forms.py. Results are appended to novelty_signal.json beside
this file; --table prints them all. Axes: T time, N environments, C rows kept, X contexts, U actions, R rows looked at,
P numbers of an observation.
"""

import argparse
import dataclasses
import functools
import json
import math
import os
import pathlib
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
import envs
from docs.experiments.novelty_forms import FORMS, Form, Fourier, Kernel, Preset
from docs.experiments.novelty_tasks import TASKS, Data, Looked, Task, collect, looked_at, ring_of
from envs.environment import Environment
from stages import optimizer
from stages.cli.parse import parse
from stages.config import Config, Hypers
from stages.encode import preprocess_obs
from stages.measure.coverage import action_vectors
from stages.networks.symlog import symlog
from stages.replay import Row, StepCounters, Windows, read_windows, sample_windows, write_back
from stages.rssm import Latent, initial_latent
from stages.sweep.start import start_jax
from stages.world_model import Observed, WorldModel, action_vector, model_loss, observe

RESULTS = pathlib.Path(__file__).with_suffix(".json")
OFTEN = 0.75  # pairs tried at least as often as this quantile of all pairs that were tried at all

# ---- pure functions of the results ---------------------------------------------------------------------------------


def ranks(x: np.ndarray) -> np.ndarray:
    """Ranks from 1; ties share their mean rank."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Area under the ROC curve: P(positive > negative) + P(equal) / 2; NaN where either is empty."""
    if not len(positive) or not len(negative):
        return math.nan
    above = ranks(np.concatenate([positive, negative]))[: len(positive)].sum() - len(positive) * (len(positive) + 1) / 2
    return float(above / (len(positive) * len(negative)))


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation; NaN where either is constant."""
    x, y = ranks(x), ranks(y)
    if len(x) < 2 or x.std() == 0 or y.std() == 0:
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])


# ---- the world model -----------------------------------------------------------------------------------------------


class Training(eqx.Module):
    """A world model that learns."""

    model: WorldModel
    moments: Any
    ring: Row
    key: PRNGKeyArray


class Snapshot(NamedTuple):
    """A world model on its way, and the states of the ring's rows as it sees them."""

    model: WorldModel
    deter: np.ndarray  # [C, 1, D]
    stoch: np.ndarray  # [C, 1, S]


def model_updates(
    config: Config, hypers: Hypers, recon: Callable[..., Array] | None, training: Training, count: Array, length: int
) -> tuple[Training, Array]:
    """So many steps of the world model, as mode explore takes them, and their reconstruction error."""

    def update(training: Training, _: None) -> tuple[Training, Array]:
        key, key_windows, key_observe = jr.split(training.key, 3)
        windows, batch = sample_batch(config, training.ring, count, key=key_windows)
        rows = jax.tree.map(lambda x: x[1:], batch)

        def loss(model: WorldModel) -> tuple[Array, tuple[Latent, Array]]:
            observed = observe_window(model, batch, hypers, key=key_observe)
            losses, _ = model_loss(model, observed, rows.obs, rows.reward, rows.is_terminal, hypers, True)
            if recon is not None:
                losses["recon"] = recon(model.decoder, observed.latent, rows.obs)
            scaled = [getattr(hypers, f"scale_{name}") * value.mean() for name, value in losses.items()]
            return jnp.stack(scaled).sum(), (observed.latent, losses["recon"].mean())

        (_, (latent, error)), grads = jax.value_and_grad(loss, has_aux=True)(training.model)
        updates, moments = optimizer.optimizer(hypers).update(grads, training.moments, training.model)
        ring = write_back(training.ring, windows, latent.deter, latent.classes)
        return Training(eqx.apply_updates(training.model, updates), moments, ring, key), error

    training, errors = lax.scan(update, training, length=length)
    return training, errors.mean()


def sample_batch(config: Config, ring: Row, count: Array, *, key: PRNGKeyArray) -> tuple[Windows, Row]:
    """A batch of the ring's first `count` rows, [T+1, B, ...]."""
    size, length = config.replay.batch_size, config.replay.batch_length
    counters = StepCounters(count, jnp.zeros((), jnp.int32))
    windows = sample_windows(counters, ring.reward.shape[0], 1, size, length, False, key=key)
    return windows, read_windows(ring, windows, length)


def observe_window(model: WorldModel, batch: Row, hypers: Hypers, *, key: PRNGKeyArray) -> Observed:
    """The account of rows 1 to T of a batch."""
    action, rows = action_vector(model, batch.action), jax.tree.map(lambda x: x[1:], batch)
    context = Latent.stored(batch.deter[0], batch.stoch[0], model.rssm.classes, model.dtype)
    return observe(model, context, action[:-1], rows.obs, rows.is_first, hypers.unimix, key=key)


def posterior(model: WorldModel, rows: Row, unimix: Array) -> Latent:
    """States of whole streams [T, N]."""
    action = action_vector(model, rows.action)
    context = initial_latent(model.rssm, rows.is_first.shape[1:], model.dtype)
    before = jnp.concatenate([jnp.zeros_like(action[:1]), action[:-1]])
    return observe(model, context, before, rows.obs, rows.is_first, unimix, key=jr.key(7)).latent


class ModelRun(NamedTuple):
    """One seed of a task: its rows, and a world model trained on the kept ones."""

    data: Data
    ring: Row  # [C, 1]
    count: int
    snapshots: list[Snapshot]
    latent: Latent  # [T, N]: of all rows, with the last of them
    recon: float


def run_model(setting: "Setting", seed: int, updates: int, points: int, steps: dict[str, Any]) -> ModelRun:
    """Collect and train. Every point refreshes the states of all rows, as acting would have left them."""
    config, hypers, env = setting.config, setting.hypers, setting.env
    if "model" not in steps:
        steps["model"] = jax.jit(lambda key: WorldModel(config, env.obs_space, env.action_space, key=key))
        steps["posterior"] = jax.jit(posterior)
    model = steps["model"](jr.key(seed))
    data = collect(setting.task, env, model, seed, steps)
    if "update" not in steps or setting.weighted:
        recon = weighted_recon(data) if setting.weighted else None
        steps["update"] = jax.jit(functools.partial(model_updates, config, hypers, recon, length=updates // points))
    ring, count = ring_of(data, data.streams)
    training = Training(model, optimizer.optimizer(hypers).init(model), jax.tree.map(jnp.asarray, ring), jr.key(seed))
    snapshots, error = [], jnp.nan
    for _ in range(points):
        latent = steps["posterior"](training.model, data.streams, hypers.unimix)
        deter, stoch = ring_of(data, (np.asarray(latent.deter), np.asarray(latent.classes)))[0]
        refreshed = eqx.tree_at(lambda r: (r.deter, r.stoch), training.ring, (jnp.asarray(deter), jnp.asarray(stoch)))
        training, error = steps["update"](dataclasses.replace(training, ring=refreshed), jnp.asarray(count))
        snapshots.append(Snapshot(training.model, *map(np.asarray, (training.ring.deter, training.ring.stoch))))
    latent = steps["posterior"](training.model, data.streams, hypers.unimix)
    return ModelRun(data, ring, count, snapshots, latent, float(error))


# ---- forms beside it -----------------------------------------------------------------------------------------------


def rows_at(streams: Any, looked: Looked) -> Any:
    """Arrays [T, N, ...] -> those of the rows looked at, [R, ...]."""
    t, n = looked.where.T
    return jax.tree.map(lambda x: x[t, n], streams)


class Setting(NamedTuple):
    """What is measured in."""

    name: str
    task: Task
    env: Environment
    config: Config
    hypers: Hypers
    weighted: bool  # rare entries weigh more in the reconstruction


def learn_form(form: Form, config: Config, hypers: Hypers, state: Any, model: WorldModel, ring: Row, count: Array, key):
    """One update's worth of a form's learning beside a world model."""
    if form.updates == 0:
        assert isinstance(form, Preset), "the other forms learn by updates of their own alone"
        key_windows, key_observe = jr.split(key)
        _, batch = sample_batch(config, ring, count, key=key_windows)
        observed, rows = observe_window(model, batch, hypers, key=key_observe), jax.tree.map(lambda x: x[1:], batch)
        return form.learn_with_model(state, model, observed, rows, action_vector(model, rows.action))

    def step(state, key):
        start = jr.randint(key, (config.ensemble.batch_size,), 0, count - 1)
        return form.learn(state, model, read_windows(ring, Windows(start, jnp.zeros_like(start)), 1)), None

    return lax.scan(step, state, jr.split(key, form.updates))[0]


def run_form(setting: Setting, form: Form, runs: dict[int, ModelRun], updates: int, looked: dict[int, Looked]):
    """Train a form beside each seed's snapshots: its novelty of every action at the rows looked at, {seed: [R, U]}."""
    env, config, hypers = setting.env, setting.config, setting.hypers

    def learn(state, snapshot, ring, count, key):
        ring = eqx.tree_at(lambda r: (r.deter, r.stoch), ring, (snapshot.deter, snapshot.stoch))
        step = lambda state, key: (learn_form(form, config, hypers, state, snapshot.model, ring, count, key), None)
        return lax.scan(step, state, jr.split(key, updates))[0]

    def ask(state, model, latent, obs):
        seen = preprocess_obs(env.obs_space, obs).reshape(len(obs), -1)

        def about(action):
            return form.novelty(state, model, latent, seen, jnp.broadcast_to(action, (len(seen), len(action))))

        return lax.map(about, action_vectors(env.action_space)).T

    learn, ask, found = jax.jit(learn), jax.jit(ask), {}
    init = jax.jit(lambda key: form.init(env, config, key=key))
    for seed, run in runs.items():
        state, ring, count = init(jr.key(100 + seed)), jax.tree.map(jnp.asarray, run.ring), jnp.asarray(run.count)
        for i, snapshot in enumerate(run.snapshots):
            state = learn(state, snapshot, ring, count, jr.fold_in(jr.key(seed), i))
        at = rows_at((run.latent, run.data.streams.obs), looked[seed])
        found[seed] = np.asarray(ask(state, run.snapshots[-1].model, *at))
    return found


# ---- what the answers say ------------------------------------------------------------------------------------------


def judge(data: Data, looked: Looked, novelty: Float[np.ndarray, "R U"]) -> dict[str, float]:
    """The figures of one form."""
    t, n = looked.where.T
    context = data.context[t, n]
    seen = looked.present & ~looked.beyond
    tried = data.counts[data.counts > 0]
    often = data.counts >= np.quantile(tried, OFTEN)
    held, many = (mask[context] & seen[:, None] for mask in (data.held, often))
    behind = looked.present & looked.beyond
    taken = novelty[np.arange(len(t)), data.action[t, n]]
    known, sums = np.zeros(data.counts.shape), np.zeros(data.counts.shape)
    np.add.at(known, context[seen], 1)
    np.add.at(sums, context[seen], novelty[seen])
    pairs = known > 0
    never = pairs & (data.counts == 0)
    others = (data.counts > 0)[context] & seen[:, None]
    pick, act = np.nonzero(held)
    less = (novelty[pick] < novelty[pick, act][:, None]) + 0.5 * (novelty[pick] == novelty[pick, act][:, None])
    beside = others[pick]
    within = (less * beside).sum(1)[beside.any(1)] / beside.sum(1)[beside.any(1)]
    new, old = novelty[held], novelty[many]
    mean = sums[pairs] / known[pairs]
    return {
        "auc": auc(new, old),
        "within": float(within.mean()) if len(within) else math.nan,
        "ratio": float(new.mean() / old.mean()) if len(new) else math.nan,
        "correlation": spearman(mean, data.counts[pairs]),
        "beyond": auc(taken[behind], old),
        "beyond_ratio": float(taken[behind].mean() / old.mean()) if behind.any() else math.nan,
        "never": auc((sums / np.maximum(known, 1))[never], (sums / np.maximum(known, 1))[pairs & often]),
        "held_mean": float(new.mean()) if len(new) else math.nan,
        "often_mean": float(old.mean()),
    }


def weighted_recon(data: Data, floor: float = 0.01, most: float = 10.0) -> Callable[..., Array]:
    """A binary observation's reconstruction loss with rare entries weighted up: by how far they vary, 1 on average."""
    numbers = np.asarray(data.streams.obs)[data.kept].astype(np.float32)
    variance = numbers.reshape(len(numbers), -1).var(0)
    weight = np.minimum(most, 0.25 / (variance + floor)).reshape(numbers.shape[1:])

    def recon(decoder, latent, obs):
        raw = decoder(latent)
        real = decoder.space.kind == "real"
        loss = jnp.square(raw - symlog(obs)) if real else jax.nn.softplus(raw) - raw * obs
        return (weight * loss).sum(tuple(range(-weight.ndim, 0)))

    return recon


def measure(
    name: str, names: list[str], seeds: int, updates: int, points: int, add: str, weighted: bool, cache: str, last: int
) -> Iterator[list[dict[str, Any]]]:
    """Train and judge the forms in one task; yields results form by form."""
    task = TASKS[name]
    arguments = parse([*"--preset tiny --mode explore".split(), *task.words.split(), *add.split()])
    hypers = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), arguments.hypers)
    env = envs.make(arguments.config.env, dict(arguments.config.env_args))
    setting = Setting(name, task, env, arguments.config, hypers, weighted)
    runs, looked, steps = {}, {}, {}
    for seed in range(seeds):
        began = time.process_time()
        what = f"{name} {add} {weighted} {seed} {updates} {points}".replace(" ", "_").replace("/", "_")
        file = pathlib.Path(cache, what + ".pickle") if cache else None
        if file and file.exists():
            runs[seed] = load(file, setting, points)
        else:
            runs[seed] = run_model(setting, seed, updates, points, steps)
            if file:
                save(runs[seed], file)
        runs[seed] = runs[seed]._replace(snapshots=runs[seed].snapshots[-last:])
        looked[seed] = looked_at(runs[seed].data, np.random.default_rng(seed), len(runs[seed].data.counts))
        seconds, run = time.process_time() - began, runs[seed]
        print(f"# {name} seed {seed}: {run.count} rows, recon {run.recon:.3g}, {seconds:.0f} s", flush=True)
    for form in names:
        began = time.process_time()
        if form == "counts":
            where = {seed: run.data.context[tuple(looked[seed].where.T)] for seed, run in runs.items()}
            answers = {seed: 1 / np.sqrt(1 + run.data.counts[where[seed]]) for seed, run in runs.items()}
        elif isinstance(made := FORMS[form], Kernel | Fourier):
            answers = {seed: made.answer(env, run, run.latent, looked[seed]) for seed, run in runs.items()}
        else:
            answers = run_form(setting, made, runs, updates // points, looked)
        seconds = round((time.process_time() - began) / seeds, 1)
        at = {"task": name, "add": add + (" recon-weighted" if weighted else ""), "updates": updates, "last": last}
        at["form"] = form
        yield [
            at
            | {"seed": seed, "rows": run.count, "recon": round(run.recon, 4), "seconds": seconds}
            | judge(run.data, looked[seed], answers[seed])
            for seed, run in runs.items()
        ]


def save(run: ModelRun, file: pathlib.Path) -> None:
    """Keep a run's arrays."""
    file.write_bytes(pickle.dumps([np.asarray(x) for x in jax.tree.leaves(run)]))


def load(file: pathlib.Path, setting: Setting, points: int) -> ModelRun:
    """Undo `save`."""
    env, leaves = setting.env, iter(pickle.loads(file.read_bytes()))
    model = jax.eval_shape(lambda: WorldModel(setting.config, env.obs_space, env.action_space, key=jr.key(0)))
    row, latent = Row(*[0] * 8), Latent(*[0] * 2)
    like = ModelRun(Data(row, *[0] * 6), row, 0, [Snapshot(model, 0, 0)] * points, latent, 0.0)
    run = jax.tree.map(lambda _: next(leaves), like)
    return run._replace(count=int(run.count), recon=float(run.recon))


FIGURES = ("auc", "ratio", "within", "correlation", "beyond", "beyond_ratio", "never", "held_mean", "often_mean")


def show(results: list[dict[str, Any]]) -> None:
    """A markdown table: the mean over seeds, and from the lowest to the highest."""
    columns = ("task", "add", "updates", "last", "form")
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(tuple(result[name] for name in columns), []).append(result)
    names = [*columns, "seeds", *FIGURES]
    print(f"| {' | '.join(names)} |\n" + "| --- " * len(names) + "|")
    for group, mine in groups.items():
        cells = [*map(str, group), str(len(mine))]
        for figure in FIGURES:
            values = np.array([result[figure] for result in mine], float)
            spread = f" ({values.min():.2g} to {values.max():.2g})" if len(values) > 1 else ""
            cells.append(f"{values.mean():.2g}{spread}")
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    """Measure, keep and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", default=[], choices=list(TASKS))
    parser.add_argument("--forms", nargs="*", default=[*FORMS, "counts"])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--updates", type=int, default=1500, help="of the world model")
    parser.add_argument(
        "--points", type=int, default=50, help="stretches of updates with one world model for the forms"
    )
    parser.add_argument("--last", type=int, default=50, help="of them, how many at the end forms learn beside")
    parser.add_argument("--add", default="", metavar="WORDS", help="further words of run.py for the world model")
    parser.add_argument("--recon-weighted", action="store_true", help="rare entries weigh more in the reconstruction")
    parser.add_argument("--cache", default="", metavar="FOLDER", help="keep trained world models there")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print what was kept")
    asked = parser.parse_args()
    start_jax()
    if asked.cache:
        os.makedirs(asked.cache, exist_ok=True)
    for task in asked.tasks:
        rest = asked.updates, asked.points, asked.add, asked.recon_weighted, asked.cache, asked.last
        for found in measure(task, asked.forms, asked.seeds, *rest):
            # Read again each time: several of these programs may write.
            kept = json.loads(asked.out.read_text()) if asked.out.exists() else []
            asked.out.write_text("[\n" + ",\n".join(json.dumps(r) for r in kept + found) + "\n]\n")
            show(found)
    if asked.table:
        show(json.loads(asked.out.read_text()))


if __name__ == "__main__":
    main()
