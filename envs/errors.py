"""What can go wrong when an environment is made; every message is one line that says what to do."""


class EnvError(ValueError):
    """An environment cannot be made as asked; catch this one for all of the below."""


class UnknownEnvironment(EnvError):
    """No suite knows the id."""


class UnavailableEnvironment(EnvError):
    """A suite knows the id, but the environment cannot run here."""


class BadOverride(EnvError):
    """A setting does not exist, or its value is no good."""
