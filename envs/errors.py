"""Errors of making an environment; every message is one line that says what to do."""


class EnvError(ValueError):
    """An environment cannot be made as asked; the base class of the errors below."""


class UnknownEnvironment(EnvError):
    """No suite knows the id."""


class UnavailableEnvironment(EnvError):
    """A suite knows the id, but the environment cannot run here."""


class BadOverride(EnvError):
    """A setting does not exist, or cannot have the value that was given."""
