"""A deploy moves the state only if it upgrades all hubs."""

from __future__ import annotations

import pytest

from roles.errors import DeployError
from roles.streams import refuse_some_hubs


def test_the_state_is_not_moved_away_from_hubs_that_are_not_upgraded() -> None:
    refuse_some_hubs(["hub-1", "hub-2"], ["hub-2", "hub-1"])
    with pytest.raises(DeployError, match="does not reach hub-2: deploy to all"):
        refuse_some_hubs(["hub-1", "hub-2"], ["hub-1"])
