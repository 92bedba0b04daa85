"""A build hook of hatchling: put what a deploy needs beside the Python package into the wheel, as ``natskit/_kit/``.

An editable install has none of it: there the checkout itself is the kit (``natskit.config.kit``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KIT = (
    "deploy.py",
    "roles",
    "templates",
    "inventories/example.py",
    "requirements/host.lock",
    "requirements/platform.lock",
    "requirements/nats-server",
    "web/dist",
)


class WheelKit(BuildHookInterface[Any]):
    """Hatchling finds the class by its base."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Name the files for a standard wheel. Raises :class:`FileNotFoundError` when the console is not built."""
        if version != "standard":
            return
        root = Path(self.root)
        if not (root / "web" / "dist" / "index.html").exists():
            raise FileNotFoundError("web/dist/index.html is missing: run `make console` before you build the wheel")
        build_data["force_include"].update({str(root / name): f"natskit/_kit/{name}" for name in KIT})
