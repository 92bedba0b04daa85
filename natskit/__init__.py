"""natskit turns plain Linux hosts into a multi-tenant NATS platform."""

__version__: str
"""The version of the installed package; ``unknown`` in a bare checkout, where ``make down`` works without .venv."""


def __getattr__(name: str) -> str:
    """Look up the version only when it is asked for: ``importlib.metadata`` takes a third of the time in which
    ``natskit --help`` imports its modules, and that command does without it."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("natskit")
    except PackageNotFoundError:
        return "unknown"
