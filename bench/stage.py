"""What all rows work on, and what a row is."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bench.wire import Target
from tests.platform.site import LocalSite, World


@dataclass(frozen=True)
class Row:
    """One line of the table. ``ratio`` is ours over bare, where there is something bare."""

    number: str
    what: str
    ratio: float | None
    measured: str
    aim: str
    met: bool | None
    method: str


@dataclass(frozen=True)
class Stage:
    """What all rows work on: a platform, its people, and how often to repeat."""

    site: LocalSite
    world: World
    rounds: int

    def browser(self, *, through_proxy: bool) -> Target:
        """A signed-in browser, through the proxy with TLS or at nats-server's own WebSocket."""
        session = self.site.sign_in(self.world.email_a, self.world.password)
        direct = f"ws://127.0.0.1:{self.site.data['nats_websocket_port']}/"
        return Target(
            self.site.websocket_url if through_proxy else direct,
            cookie=session.cookie,
            origin=self.site.url,
            ca_file=self.site.ca_file if through_proxy else None,
        )

    def project(self) -> Target:
        """The project, over TCP."""
        return Target(self.site.info["nats_urls"][0], creds=self.site.project_creds(self.world.names["p"]))


def percentiles(seconds: Sequence[float]) -> tuple[float, float]:
    """Median and 99th percentile in milliseconds."""
    ordered = sorted(seconds)
    return statistics.median(ordered) * 1000, ordered[int(len(ordered) * 0.99)] * 1000
