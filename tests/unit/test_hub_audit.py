"""The audit's queue and its counted events: nobody can fill it, and lost events show."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natskit.cli.audit import parse_since
from natskit.errors import NatskitError
from natskit.hub.audit import events
from natskit.hub.audit.events import Audit, Throttle
from natskit.hub.metrics import Metrics
from natskit.ops.stream_provisioning import MOST_BYTES_OF_AN_EVENT


def waiting(audit: Audit) -> list[tuple[str, dict[str, Any]]]:
    return [(subject, json.loads(body)) for subject, _, body in audit._waiting]


def new() -> tuple[Audit, Metrics]:
    metrics = Metrics()
    return Audit("hub-1", metrics), metrics


def test_a_stranger_is_written_once_a_minute_and_then_counted() -> None:
    audit, _ = new()
    for _ in range(500):
        audit.record_of_stranger("sign_in", reason="wrong password", account="a", address="192.0.2.1")
    audit.record_of_stranger("sign_in", reason="wrong password", account="b", address="192.0.2.1")
    assert [event["account"] for _, event in waiting(audit)] == ["a", "b"]
    audit._put_summaries()
    assert [(e["account"], e["count"]) for _, e in waiting(audit)[2:]] == [("a", 499)]
    audit._put_summaries()
    assert len(waiting(audit)) == 3


def test_a_thousand_strangers_cause_no_more_than_a_few_events_a_minute() -> None:
    audit, _ = new()
    for number in range(1000):
        audit.record_of_stranger("sign_in", reason="unknown e-mail", address=f"192.0.2.{number}")
    audit.record_of_stranger("connect", reason="no ticket", address="192.0.2.1")
    audit._put_summaries()
    kinds = [event["kind"] for _, event in waiting(audit)]
    assert kinds.count("sign_in") == events.STRANGERS + 1
    assert kinds.count("connect") == 1
    assert waiting(audit)[-1][1]["count"] == 1000 - events.STRANGERS


def test_each_account_that_something_was_shared_with_is_named() -> None:
    audit, _ = new()
    for number in range(events.NAMED - 1):
        audit.record_of_account("share_project", account="a", target=f"decoy {number}", project_id="p")
    for _ in range(events.REPEATS + 7):
        audit.record_of_account("share_project", account="a", target="the one", project_id="p")
    named = [event["target"] for _, event in waiting(audit)]
    assert named.count("the one") == events.REPEATS
    assert len(set(named)) == events.NAMED
    audit.record_of_account("share_project", account="b", target="the one", project_id="p")
    audit.record_of_account("share_project", account="a", target="one more", project_id="p")
    written = len(waiting(audit))
    audit._put_summaries()
    counted = [(e["account"], e.get("target"), e["count"]) for _, e in waiting(audit)[written:]]
    assert counted == [("a", "the one", 7), ("a", None, 1)]


def test_what_one_tries_in_vain_does_not_fill_the_stream() -> None:
    audit, _ = new()
    for number in range(1000):
        for kind in ("delete_project", "start_project"):
            audit.record_of_account(kind, account="a", outcome="refused", by="account a", project_id=str(number))
    audit.record_of_account("delete_project", account="b", outcome="refused", by="account b", project_id="p")
    audit.record_of_account("delete_project", account="a", by="account a", project_id="p")
    assert [e["account"] for _, e in waiting(audit)] == ["a"] * events.STRANGERS + ["b", "a"]
    audit._put_summaries()
    last = waiting(audit)[-1][1]
    assert (last["kind"], last["by"], last["count"]) == ("calls", "account a", 2000 - events.STRANGERS)


def test_a_runner_hides_nothing_that_another_one_does() -> None:
    audit, _ = new()
    for _ in range(events.NAMED):
        audit.record_of_account("register", account="-", by="runner a")
    audit.record_of_account("register", account="-", by="runner b")
    assert [e["by"] for _, e in waiting(audit)] == ["runner a"] * events.REPEATS + ["runner b"]


@given(st.lists(st.integers(0, 30), max_size=300))
def test_nothing_is_counted_twice_or_forgotten(keys: list[int]) -> None:
    throttle = Throttle(each=2, total=5)
    written = sum(throttle.take(("kind",), (str(key),), {"kind": "kind", "outcome": "refused"}) for key in keys)
    assert written + sum(event["count"] for event in throttle.due()) == len(keys)
    assert written <= 2 * 5
    assert throttle.due() == []


def test_a_full_queue_drops_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "QUEUE", 3)
    audit, metrics = new()
    for _ in range(5):
        audit.record("account_add", account="a")
    assert [event["id"].rpartition(".")[2] for _, event in waiting(audit)] == ["1", "2", "3"]
    assert 'natskit_hub_audit_events_total{result="dropped"} 2.0' in metrics.text().decode()
    assert "natskit_hub_audit_waiting" in audit.gauges()


@given(st.text(), st.text(), st.dictionaries(st.sampled_from(["email", "reason", "user_agent"]), st.text()))
def test_whatever_a_field_holds_it_is_one_short_line_on_one_subject(
    kind: str, account: str, fields: dict[str, str]
) -> None:
    audit, _ = new()
    audit.record(kind, account=account, **fields)
    ((subject, _, body),) = audit._waiting
    assert len(body) < MOST_BYTES_OF_AN_EVENT
    assert subject.startswith("audit.")
    assert subject.count(".") == 2
    assert not set(subject) & set(" *>\r\n")
    assert all(c.isprintable() for value in json.loads(body).values() if isinstance(value, str) for c in value)


def test_since() -> None:
    assert parse_since("90s", 1000) == 910
    assert parse_since("7d", 7 * 86400) == 0
    now = 2e9
    assert parse_since("2026-01-31", now) == parse_since("2026-01-31T01:00+01:00", now)
    for wrong in ("", "7", "d", "-1d", "yesterday", "1y", "5 minutes"):
        with pytest.raises(NatskitError, match=f"{wrong}' is not a time: use an age such as 90s, 30m, 24h"):
            parse_since(wrong, now)
    with pytest.raises(NatskitError, match="'2099-01-01' is in the future: use an age"):
        parse_since("2099-01-01", now)
