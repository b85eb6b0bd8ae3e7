"""Find an environment by its id, whichever suite it is from."""

from collections.abc import Mapping
from typing import Protocol

from envs import envelope_suite, gymnax_suite, own
from envs.environment import Environment
from envs.errors import UnknownEnvironment
from envs.overrides import Value
from envs.suggest import did_you_mean


class Suite(Protocol):
    """What a suite's file offers. It imports its library inside these functions: `import envs` stays fast."""

    UNAVAILABLE: Mapping[str, str]  # ids that the suite has and cannot make here, each with the reason

    def ids(self) -> tuple[str, ...]: ...

    def make(self, name: str, overrides: Mapping[str, Value]) -> Environment: ...


# A suite joins by a file in this folder and a line here.
SUITES: tuple[Suite, ...] = (
    gymnax_suite,
)  # fmt: skip


def ids() -> tuple[str, ...]:
    """All ids that `make` accepts, except those of the suites in envs/envelope_suite.py. Imports gymnax, which takes
    seconds the first time."""
    return tuple(name for suite in SUITES for name in suite.ids())


def make(name: str, overrides: Mapping[str, Value] | None = None) -> Environment:
    """Make an environment. Make it once in a run: jit compiles anew for a second object of the same name.

    Name: one of `ids()`, for example "Catch-bsuite"; of another suite, "navix::Navix-DoorKey-8x8-v0"
    (envs/envelope_suite.py); or of the caller's own, "package.module:factory" (envs/own.py).
    Overrides: settings of that environment, for example {"size": 20} or {"size": "20"} for "DeepSea-bsuite"; a wrong
    key's error lists the right ones.
    Errors, each one line and before anything is compiled: `UnknownEnvironment`, `UnavailableEnvironment`,
    `BadOverride`, all of them `EnvError`.
    """
    if envelope_suite.is_suites(name):
        return envelope_suite.make_envelope(name, overrides or {})
    if own.is_own(name):
        return own.make_own(name, overrides or {})
    for suite in SUITES:
        if name in suite.UNAVAILABLE or name in suite.ids():
            return suite.make(name, overrides or {})
    listing = f"choose one of {', '.join(ids())}, or package.module:factory for one of your own"
    raise UnknownEnvironment(f"no environment is named {name!r}; {did_you_mean(name, ids(), cutoff=0.4) or listing}")
