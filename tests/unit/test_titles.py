"""Titles appear in other people's terminals."""

import pytest

from natskit.hub.services.projects import _title
from natskit.rpc import RpcError


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("  First\n steps\t", "First steps"),
        ("\x1b[31mred\x07", "[31mred"),
        ("\x9b2Jcleared", "2Jcleared"),
        ("\U0001f469\u200d\U0001f680 'quotes' \"too\"", "\U0001f469\u200d\U0001f680 'quotes' \"too\""),
    ],
)
def test_no_control_character_stays_in_a_title(given: str, kept: str) -> None:
    assert _title(given) == kept


def test_a_title_of_control_characters_is_none() -> None:
    with pytest.raises(RpcError, match="a title has 1 to"):
        _title("\x1b\x07\n")
