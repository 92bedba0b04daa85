"""Any single process or host may die or be cut off: acknowledged writes stay, and everything recovers by itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.failures import FAILURES, Failure, inflict, table
from tests.cluster.load import Load, running
from tests.cluster.machines import Machines
from tests.cluster.site import Cluster

AWAY_SECONDS = 3.0


@pytest.fixture(scope="module")
def machines(cluster: Cluster) -> Machines:
    return Machines.of(cluster)


@pytest.fixture(scope="module")
def load(machines: Machines) -> Iterator[Load]:
    """One load during all failures. At the end, checks that all its writes are there."""
    with running(machines.target()) as load:
        load.go_on()
        yield load
    assert load.written is not None
    assert load.written.lost == []


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.name)
def test_the_rest_goes_on_and_what_was_killed_comes_back(machines: Machines, load: Load, failure: Failure) -> None:
    result = inflict(machines, load, failure, AWAY_SECONDS)
    print(table([result], None), result.seen.reasons())
    assert result.seen.failed("write") == 0
    if failure.outlived:
        assert result.seen.failed("request") == 0, result.seen.reasons()
