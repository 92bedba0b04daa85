"""The NATS account that a stream of a backup is restored into."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from natskit.backup.manifest import StreamEntry
from natskit.backup.restore import account_of
from natskit.backup.sealing import Sealed


@pytest.mark.parametrize(
    ("account", "name", "into"),
    [
        ("STATE", "KV_accounts", "STATE"),
        ("PLATFORM", "KV_accounts", "STATE"),  # of an older version
        ("PLATFORM", "KV_probe", "STATE"),
        ("PLATFORM", "AUDIT", "STATE"),
        ("PLATFORM", "OWN", "PLATFORM"),
        ("DOCS", "DOC_0", "DOCS"),
        ("DOCS", "AUDIT", "DOCS"),
    ],
)
def test_the_state_of_an_older_version_is_restored_to_where_it_is_now(account: str, name: str, into: str) -> None:
    entry = StreamEntry.model_construct(
        account=account,
        name=name,
        taken=datetime.now(UTC),
        created="",
        config={},
        state={},
        content=Sealed.model_construct(),
    )
    assert account_of(entry) == into
