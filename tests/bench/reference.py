"""The reference implementation beside ours: seconds of one of its updates, or of one of its runs.

It is not part of this repository: give the path of a checkout of github.com/danijar/dreamerv3 and an interpreter that
has its packages (jax, elements, ninjax, portal, einops, optax, chex, granular, scope, ruamel.yaml, psutil). update.py
and loop.py call this file with that interpreter; it imports nothing of ours but the sizes and the counter of products.
"""

import argparse
import functools
import json
import os
import pathlib
import resource
import statistics
import sys
import tempfile
import time

import flops
import sizes


def settings(checkout: str, size: str, logdir: str, train_ratio: float, platform: str):
    """The reference's own defaults, with our sizes; plain float32 on a CPU, bfloat16 elsewhere, as ours."""
    import elements
    import ruamel.yaml

    text = pathlib.Path(checkout, "dreamerv3", "configs.yaml").read_text()
    config = elements.Config(ruamel.yaml.YAML(typ="safe").load(text)["defaults"])
    model, replay, horizon = sizes.MODELS[size], sizes.REPLAYS[size], sizes.HORIZONS[size]
    agent = {
        "agent.dyn.rssm.deter": model["deter"],
        "agent.dyn.rssm.blocks": model["blocks"],
        "agent.dyn.rssm.hidden": model["hidden"],
        "agent.dyn.rssm.stoch": model["stoch"],
        "agent.dyn.rssm.classes": model["classes"],
        "agent.imag_length": horizon,
        "agent.report": False,
        r"agent\..*\.units": model["units"],
        r"agent\..*\.bins": model["bins"],
    }
    run = {"run.train_ratio": train_ratio, "run.envs": 1, "run.log_every": 1e9, "run.save_every": 1e9}
    dtype = "float32" if platform == "cpu" else "bfloat16"
    jax = {"jax.platform": platform, "jax.compute_dtype": dtype}
    batch = {"batch_size": replay[0], "batch_length": replay[1], "report_length": 2}
    return config.update({**agent, **run, **jax, **batch, "logdir": logdir, "replay.size": 1e5})


def spaces():
    """A vector observation and one discrete action."""
    import elements
    import numpy as np

    flag = elements.Space(bool)
    obs = {"vector": elements.Space(np.float32, (sizes.OBS,)), "reward": elements.Space(np.float32)}
    obs |= {"is_first": flag, "is_last": flag, "is_terminal": flag}
    return obs, {"action": elements.Space(np.int32, (), 0, sizes.ACTIONS)}


def make_agent(config, profiler=False):
    """The reference's agent, compiled."""
    import elements
    from dreamerv3.agent import Agent

    obs, act = spaces()
    names = ("seed", "batch_size", "batch_length", "replay_context", "report_length", "replica", "replicas", "logdir")
    rest = {name: getattr(config, name) for name in names}
    jax = dict(config.jax) | {"profiler": profiler}
    return Agent(obs, act, elements.Config(**config.agent, jax=jax, **rest))


def update(config, updates: int, repeats: int) -> dict[str, object]:
    """Median seconds of one update on made-up batches, the batch already on the device."""
    import jax
    import numpy as np

    keep_traceable()
    begun = time.perf_counter()
    agent = make_agent(config)
    compiled = time.perf_counter() - begun
    rng = np.random.default_rng(0)
    shape = (config.batch_size, config.batch_length + config.replay_context)
    data = agent._zeros(agent.spaces, shape)
    data["vector"] = rng.normal(size=data["vector"].shape).astype(np.float32)
    data["reward"] = rng.normal(size=shape).astype(np.float32)
    data["action"] = rng.integers(0, sizes.ACTIONS, shape).astype(np.int32)
    data["consec"][:] = 0

    def stream():
        while True:
            yield dict(data)

    batches = iter(agent.stream(stream()))
    carry = agent.init_train(config.batch_size)

    found = executed(agent, carry, next(batches))

    def step(carry):
        carry, _, _ = agent.train(carry, next(batches))
        return carry

    times = []
    for _ in range(repeats + 1):
        at = time.perf_counter()
        for _ in range(updates):
            carry = step(carry)
        jax.block_until_ready(agent.params)
        times.append((time.perf_counter() - at) / updates)
    return {
        "seconds_per_update": statistics.median(times[1:]),
        "all_seconds": times[1:],
        "compile_seconds": compiled,
        "executed_gflop": found.products / 1e9,
        "elements_million": found.elements / 1e6,
    }


def keep_traceable() -> None:
    """Compiling replaces the agent's jitted update by an executable; keep the former, to count what it executes."""
    from embodied.jax.agent import Agent

    compile_train = Agent._compile_train

    def keeping(self):
        self.traceable = self._train
        compile_train(self)

    Agent._compile_train = keeping


def executed(agent, carry, batch) -> flops.Count:
    """What its update executes, counted as ours is."""
    mine = lambda policy: {k: v for k, v in agent.params.items() if (k in agent.policy_keys) == policy}
    data = {k: v for k, v in batch.items() if k != "seed"}
    return flops.count(flops.alive(agent.traceable.trace(mine(False), mine(True), batch["seed"], carry, data).jaxpr))


def loop(config, steps: int) -> dict[str, object]:
    """Seconds of one whole run of the reference's training loop, over an environment that costs nothing."""
    import elements
    import embodied
    import numpy as np
    from dreamerv3 import main

    obs_space, act_space = spaces()

    class Vector(embodied.Env):
        """Random observations; episodes as long as sizes.EPISODE."""

        def __init__(self):
            self.rng, self.at = np.random.default_rng(0), 0

        obs_space = property(lambda self: obs_space)
        act_space = property(lambda self: act_space | {"reset": elements.Space(bool)})

        def step(self, action):
            first = bool(action["reset"]) or self.at == 0
            self.at = 1 if first else self.at + 1
            last = self.at > sizes.EPISODE
            now = self.at
            self.at = 0 if last else self.at
            return {
                "vector": self.rng.normal(size=sizes.OBS).astype(np.float32),
                "reward": np.float32(0 if first else now % 2),
                "is_first": first,
                "is_last": last,
                "is_terminal": last,
            }

    names = ("replica", "replicas", "batch_size", "batch_length", "report_length", "consec_train", "consec_report")
    rest = {name: getattr(config, name) for name in (*names, "logdir", "replay_context")}
    args = elements.Config(**dict(config.run) | {"steps": steps}, **rest)
    logger = lambda: elements.Logger(elements.Counter(), [elements.logger.JSONLOutput(config.logdir, "metrics.jsonl")])
    begun, agents, ready = time.perf_counter(), [], []

    def make():
        agents.append(make_agent(config))
        ready.append(time.perf_counter() - begun)
        return agents[0]

    embodied.run.train(
        make,
        functools.partial(main.make_replay, config, "replay"),
        lambda index: main.wrap_env(Vector(), config),
        functools.partial(main.make_stream, config),
        logger,
        args,
    )
    return {
        "run_seconds": time.perf_counter() - begun,
        "agent_seconds": ready[0],  # compiling included
        "steps": steps,
        "updates": int(agents[0].n_updates),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
    }


def accept_old_jit() -> None:
    """The reference passes jit's arguments by position, which jax has stopped taking."""
    import jax

    names = ("in_shardings", "out_shardings", "static_argnums", "static_argnames")
    plain = jax.jit
    jax.jit = lambda fn=None, *args, **kw: plain(fn, **dict(zip(names, args, strict=False)), **kw)


def measure(args: argparse.Namespace, *words: str) -> dict[str, object]:
    """Call this file with the reference's interpreter; its JSON, plus `process_seconds`, start-up included.

    Args:
        args: what common.reference_arguments asks for.
        words: what to measure, as main reads it.
    """
    import subprocess

    begun = time.perf_counter()
    place = [args.reference, *words, "--platform", args.reference_platform]
    command = [args.reference_python, os.path.abspath(__file__), *place]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"XLA_FLAGS": ""})
    if done.returncode:
        raise SystemExit(f"the reference failed: {' '.join(command)}\n{done.stderr[-2000:]}")
    result = json.loads(done.stdout.strip().splitlines()[-1])
    return result | {"process_seconds": time.perf_counter() - begun}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout")
    parser.add_argument("what", choices=["update", "loop"])
    parser.add_argument("size", choices=list(sizes.MODELS))
    parser.add_argument("--updates", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--train-ratio", type=float, default=32)
    parser.add_argument("--platform", default="cpu", help="as jax calls it: cpu, cuda, tpu")
    args = parser.parse_args()
    sys.path.insert(0, args.checkout)
    import elements
    import jax

    elements.timer.global_timer.enabled = False
    accept_old_jit()
    with tempfile.TemporaryDirectory() as logdir:
        config = settings(args.checkout, args.size, logdir, args.train_ratio, args.platform)
        result = update(config, args.updates, args.repeats) if args.what == "update" else loop(config, args.steps)
        print()
        print(json.dumps({"reference": args.what, "size": args.size, "jax": jax.__version__} | result), flush=True)
        os._exit(0)  # its prefetching threads never end


if __name__ == "__main__":
    main()
