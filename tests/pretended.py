"""Processes and phases that only pretend: threads play the ones, scores by rule the others."""

import concurrent.futures
import threading

import numpy as np

from stages.cli.processes import Processes
from stages.evaluate import Evaluation
from stages.sweep.sweep import CompiledPhase
from stages.train import TrainState

STATE = object.__new__(TrainState)  # for phases that never look at it


class Scored(CompiledPhase):
    """A phase whose evaluation episodes score seed + evaluation, and one more; expected is minus that."""

    def __init__(self):
        pass

    def evaluate(self, state, seeds, evaluation):
        scores = np.array(seeds, float)[:, None] + evaluation + np.array([0.0, 1.0])
        return Evaluation(scores, np.ones_like(scores), -scores)


class Store:
    """A key-value store as the coordinator's, where a second lasts a hundredth."""

    def __init__(self, count=3):
        self.values, self.changed = {}, threading.Condition()
        self.connected = set(range(count))

    def key_value_set_bytes(self, key, value, allow_overwrite=False):
        with self.changed:
            assert allow_overwrite or key not in self.values
            self.values[key] = value
            self.changed.notify_all()

    def blocking_key_value_get_bytes(self, key, timeout_in_ms):
        with self.changed:
            if not self.changed.wait_for(lambda: key in self.values, timeout=timeout_in_ms / 1e5):
                raise RuntimeError(f"DEADLINE_EXCEEDED: nobody set {key}")
            return self.values[key]

    def disconnect(self, index):
        with self.changed:
            self.connected.remove(index)
            self.changed.notify_all()

    def get_live_nodes(self, indices):
        with self.changed:
            assert self.changed.wait_for(lambda: self.connected & set(indices) == {0}, timeout=10)


def play(act, count=3):
    """`act` of each process, at the same time -> their results, or what they raised."""
    store = Store(count)

    def one(index):
        try:
            with Processes(index, count, store, lambda: store.disconnect(index)) as processes:
                return act(processes)
        except Exception as error:
            return error
        finally:
            assert index > 0 or not store.connected - {0} - processes._dead, "process 0 left before the others"

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))
