"""Permissions on the cluster: its nats-servers use the claims whose every cell the one-machine platform tries.

tests/platform/test_permissions.py goes through all cells with raw clients. Here the nats-servers say that their claims
are those of the identity, which come from the same table, and some cells of every role are tried on top. What hubs do
is tried in full: there are two here, on other machines than the nats-servers. `site` is the cluster.
"""

from __future__ import annotations

import pytest

from tests.cluster.site import NATS, Cluster
from tests.platform.site import World
from tests.platform.test_permissions import (
    ALLOWED,
    FORBIDDEN_PUBLISH,
    FORBIDDEN_SUBSCRIBE,
    ROLES,
    Connect,
    client_of,
    is_refused,
    test_a_reply_subject_gives_a_project_no_right,
    test_malformed_json_rpc_gets_an_error_and_harms_nothing,
    test_the_hub_answers_in_the_inbox_of_who_asks_alone,
    test_the_hub_knows_the_caller_by_the_subject_alone,
    test_the_hub_refuses_a_project_of_somebody_else,
)

__all__ = [
    "client_of",
    "test_a_reply_subject_gives_a_project_no_right",
    "test_malformed_json_rpc_gets_an_error_and_harms_nothing",
    "test_the_hub_answers_in_the_inbox_of_who_asks_alone",
    "test_the_hub_knows_the_caller_by_the_subject_alone",
    "test_the_hub_refuses_a_project_of_somebody_else",
]


def test_all_nats_servers_use_the_claims_of_the_identity(cluster: Cluster) -> None:
    assert cluster.natskit("identity", "diff").stdout.startswith(f"All {len(NATS)} nats-servers use")


@pytest.mark.parametrize("role", ROLES)
def test_some_cells_of_a_role(client_of: Connect, world: World, role: str) -> None:
    client = client_of(role)
    assert client.publish(world.name(ALLOWED[role]["publish"][0])) == []
    for subject in _ends(FORBIDDEN_PUBLISH[role]):
        assert is_refused(client.publish(world.name(subject), b"{}"), "Publish"), subject
    for subject in _ends(FORBIDDEN_SUBSCRIBE[role]):
        assert is_refused(client.subscribe(world.name(subject)), "Subscription"), subject
        assert is_refused(client.subscribe(world.name(subject), "q"), "Subscription"), subject


def _ends(subjects: list[str]) -> tuple[str, str]:
    """The subjects that every role is refused come first in the table, those that only this role is refused come
    last."""
    return subjects[0], subjects[-1]
