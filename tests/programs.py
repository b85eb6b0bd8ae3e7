"""Functions of several tests, computed together in one compiled program: in both forms, and with their gradients."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import numpy as np


def in_one_program(calls: Mapping[Hashable, tuple], options: dict[str, Any] | None = None) -> dict[Hashable, Any]:
    """What functions return, by name, as numpy has it: all computed in one compiled program.

    Args:
        calls: by name, a function and its arguments. Arguments are the program's inputs, so that XLA's own evaluator
            does not compute the results while it compiles.
        options: those of the compiler.
    """

    def compute(arguments):
        return [function(*args) for (function, *_), args in zip(calls.values(), arguments, strict=True)]

    results = jax.jit(compute, compiler_options=options)([args for _, *args in calls.values()])
    return dict(zip(calls, jax.tree.map(np.asarray, results), strict=True))


def both_forms(calls: Mapping[Hashable, tuple]) -> dict[str, dict[Hashable, Any]]:
    """`in_one_program` under "jit", and each function called as it stands under "eager"."""
    eager = lambda function, *args: jax.tree.map(np.asarray, function(*jax.device_put(args)))
    return {"jit": in_one_program(calls), "eager": {name: eager(*call) for name, call in calls.items()}}


def value_and_grads(function: Callable) -> Callable:
    """(cotangent, *arguments) -> the value of `function` and the gradients of its arguments."""

    def both(out, *args):
        value, back = jax.vjp(function, *args)
        return value, back(jax.tree.map(lambda x, like: x.astype(like.dtype), out, value))

    return both


def compare(cases: Mapping[Hashable, tuple]) -> dict[Hashable, tuple]:
    """Values and gradients of functions and of their plain forms, all in one program.

    Args:
        cases: by name, the function, its plain form, their arguments and the value's cotangent.

    Returns:
        by name, (value, gradients) of the function, and of its plain form.
    """
    calls = {}
    for name, (fast, plain, args, out) in cases.items():
        calls[name, "fast"], calls[name, "plain"] = ((value_and_grads(f), out, *args) for f in (fast, plain))
    results = in_one_program(calls)
    return {name: (results[name, "fast"], results[name, "plain"]) for name in cases}


def plain_scan(step: Callable, params: Any, carry: Any, xs: Any, fixed: Any) -> tuple[Any, Any]:
    """stages.fast.scan.scan as jax has it."""
    return jax.lax.scan(lambda carry, inputs: step(params, carry, *inputs), carry, (xs, fixed))
