"""What the HTTP handlers need of the hub."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from natskit.bus.connection import Connection
from natskit.hub.api.dispatch import Dispatcher
from natskit.hub.audit.events import Audit
from natskit.hub.auth.disconnect import Connections
from natskit.hub.auth.sessions import Sessions
from natskit.hub.config import HubProgram
from natskit.hub.metrics import Metrics
from natskit.hub.sign_in.backend import Backends
from natskit.hub.state.view import State

if TYPE_CHECKING:
    from natskit.hub.sign_in.oidc import Oidc  # authlib: 10 MB that most hubs do not need


class WebContext(Protocol):
    """A hub, of which HTTP shows the health before the rest is there: until it is ready, only ``program``, ``ready``,
    ``metrics`` and ``problems`` may be used."""

    @property
    def program(self) -> HubProgram: ...

    @property
    def ready(self) -> bool: ...

    @property
    def metrics(self) -> Metrics: ...

    @property
    def audit(self) -> Audit: ...

    @property
    def state(self) -> State: ...

    @property
    def connections(self) -> Connections: ...

    @property
    def sessions(self) -> Sessions: ...

    @property
    def backends(self) -> Backends: ...

    @property
    def oidc(self) -> Oidc | None: ...

    @property
    def dispatcher(self) -> Dispatcher: ...

    @property
    def file_connection(self) -> Connection: ...

    def problems(self) -> list[str]: ...
