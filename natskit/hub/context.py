"""What the methods of the hub work with: ``caller.hub``."""

from __future__ import annotations

from dataclasses import dataclass

from natskit.hub.audit.events import Audit
from natskit.hub.auth.sessions import Sessions
from natskit.hub.auth.tokens import Tokens
from natskit.hub.config import HubProgram
from natskit.hub.services.accounts import Accounts
from natskit.hub.services.overview import Overview
from natskit.hub.services.projects import Projects
from natskit.hub.services.runners import Runners
from natskit.hub.state.view import State


@dataclass(frozen=True)
class HubContext:
    """The parts of a hub that its methods may use. The rest of the hub, such as its connections, is out of reach."""

    program: HubProgram
    """The settings of this hub."""
    state: State
    """What is stored, as this hub sees it."""
    accounts: Accounts
    projects: Projects
    runners: Runners
    overview: Overview
    sessions: Sessions
    tokens: Tokens
    audit: Audit
