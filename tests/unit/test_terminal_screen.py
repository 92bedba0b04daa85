"""What draws a terminal's screen anew, and what viewers get of a program's output."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from natskit.project.terminals.queries import Output, with_clipboard, without_queries
from tests.agent.viewing import Drawn
from tests.kit.vt_screens import AFTER, COLUMNS, ROWS, SCREENS

QUERIES = {
    b"\x1b[c": b"\x1b[?62;22c",
    b"\x1b[>c": b"\x1b[>1;0;0c",
    b"\x1b[5n": b"\x1b[0n",
    b"\x1b[6n": b"\x1b[1;1R",
    b"\x1b[?2026$p": b"\x1b[?2026;2$y",
    b"\x1b]10;?\x07": b"\x1b]10;rgb:d0d0/d0d0/d0d0\x07",
    b"\x1b]11;?\x1b\\": b"\x1b]11;rgb:1616/1616/1616\x1b\\",
    b"\x1b[>0q": b"\x1bP>|libghostty\x1b\\",
    b"\x1b[18t": b"\x1b[8;24;80t",
    b"\x1bP$qm\x1b\\": b"\x1bP1$r0m\x1b\\",
    b"\x1bP+q544e\x1b\\": b"\x1bP0+r\x1b\\",
    b"\x1b[?996n": b"\x1b[?997;1n",
    b"\x1b[?u": b"",
    b"\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\": b"",
}
"""Queries, and what the emulator answers; empty if an answer would promise what viewers cannot do."""

PIECES = st.sampled_from(
    [
        *(b"word ", b"x" * 7, b"x" * 45, b"\r\n", b"\r\n\r\n\r\n", b"\t", b"\x08", b"\x1bM", b"\x1bD"),
        *(b"\x1b[%d;%dH" % place for place in ((1, 1), (3, 9), (5, 20), (14, 2), (6, 40))),
        *(b"\x1b[%sm" % code for code in (b"", b"1", b"3", b"7", b"9", b"31", b"42", b"97", b"2", b"4:3")),
        *(b"\x1b[48;2;7;5;9m", b"\x1b[38;5;200m", b"\x1b[58;5;3;4m"),
        *(b"\x1b[%d%b" % (count, what) for count in (1, 3) for what in (b"X", b"L", b"M", b"P", b"@", b"S", b"T")),
        *(b"\x1b[%d%b" % (which, what) for which in (0, 1, 2) for what in (b"K", b"J")),
        *(b"\x1b[2;5r", b"\x1b[r", b"\x1b[?6h", b"\x1b[?6l", b"\x1b[?7l", b"\x1b[?7h", b"\x1b[4h", b"\x1b[4l"),
        *(b"\x1b[?25l", b"\x1b[?25h", b"\x1b[?1h", b"\x1b[?2004h", b"\x1b[?1002h\x1b[?1006h", b"\x1b[2 q"),
        *(b"\x1b7", b"\x1b8", b"\x1b[?1049h", b"\x1b[?1049l"),
        *("日本語".encode(), "😀".encode(), b"e\xcc\x81", b"\x1b(0qqx\x1b(B"),
        *(
            b"\x1b]8;;http://example.org/\x1b\\link\x1b]8;;\x1b\\",
            b"\x1b]2;a title\x07",
            b"\x1b]4;1;rgb:11/22/33\x1b\\",
        ),
    ]
)


@given(st.lists(PIECES, max_size=60), st.sampled_from([(20, 6), (40, 14), (10, 3)]))
@example([b"\x1b[44m\x1b[K", b"\r\n", b"\x1b[m"], (20, 6))
@example([b"\x1b[2;5r", b"\x1b[?6h", b"\x1b[3;9H"], (40, 14))
@example([b"x" * 45, b"\x1b[?1049h", b"\x1b[41m\x1b[2J"], (20, 6))
@settings(deadline=None, max_examples=50)
def test_coming_back_shows_the_live_screen(pieces: list[bytes], size: tuple[int, int]) -> None:
    live, back = Drawn(*size), Drawn(*size)
    live.screen.feed(b"".join(pieces))
    back.screen.feed(b"\x1b[?1049h\x1b[31mwhat was there before\x1b[?6h\x1b[5;6r\x1b[?7l")
    back.screen.feed(live.screen.draw(None))
    assert back.look() == live.look()
    assert back.title == live.title


@given(st.lists(PIECES, max_size=40), st.sampled_from([(20, 6), (40, 14)]), st.data())
@settings(deadline=None, max_examples=25)
def test_coming_back_after_a_cut_at_any_byte_shows_the_live_screen(
    pieces: list[bytes], size: tuple[int, int], data: st.DataObject
) -> None:
    """Also in the middle of a sequence or a character: what follows means the same to both."""
    whole = b"".join(pieces)
    cut = data.draw(st.integers(0, len(whole)))
    comes_back_at(whole, cut, size)


@pytest.mark.parametrize("before", ["", "a row of 20 columns."])
def test_coming_back_in_the_middle_of_a_character(before: str) -> None:
    whole = f"{before}é日🙂 after".encode()
    for cut in range(len(whole) + 1):
        comes_back_at(whole, cut, (20, 6))


@pytest.mark.parametrize("name", SCREENS)
@given(data=st.data())
@settings(deadline=None, max_examples=4)
def test_coming_back_in_the_middle_of_a_test_screen(name: str, data: st.DataObject) -> None:
    whole = SCREENS[name] + AFTER
    cut = data.draw(st.integers(0, len(whole)))
    comes_back_at(whole, cut, (COLUMNS, ROWS))


def comes_back_at(whole: bytes, cut: int, size: tuple[int, int]) -> None:
    """What comes first has led the live screen somewhere, and the other one gets what draws that."""
    live, back = Drawn(*size), Drawn(*size)
    live.screen.feed(whole[:cut])
    back.screen.feed(b"\x1b[?1049h\x1b[31mwhat was there before\x1b[?6h\x1b[5;6r\x1b[?7l\x1b[3g")
    back.screen.feed(live.screen.draw(None))
    for drawn in (live, back):
        drawn.screen.feed(whole[cut:])
    assert back.look() == live.look()


def test_the_scrollback_comes_back_and_can_be_limited() -> None:
    live, back, part = Drawn(40, 5), Drawn(40, 5), Drawn(40, 5)
    live.screen.feed(b"".join(b"\x1b[%dmline %d\x1b[m\r\n" % (31 + n % 6, n) for n in range(1000)) + b"\r\n\r\n\r\n")
    back.screen.feed(live.screen.draw(None))
    assert back.contents() == live.contents()
    assert back.look() == live.look()
    part.screen.feed(live.screen.draw(10))
    assert part.look()[0] == live.look()[0]
    assert "line 988" not in part.contents()
    assert "line 999" in part.contents()


def test_a_tab_stop_is_cleared_without_a_number() -> None:
    """libghostty-vt itself wants one."""
    drawn = Drawn(40, 2)
    drawn.screen.feed(b"\x1b[1;9H\x1b[g\r\tx")
    assert drawn.text() == " " * 16 + "x"


def test_the_cursor_waits_behind_a_full_line() -> None:
    live, back = Drawn(10, 3), Drawn(10, 3)
    live.screen.feed(b"123456789" + "é".encode())
    back.screen.feed(live.screen.draw(None))
    for drawn in (live, back):
        drawn.screen.feed(b"x")
    assert back.look() == live.look()


@pytest.mark.parametrize(("query", "answer"), QUERIES.items())
def test_queries_are_answered_here_and_kept_from_viewers(query: bytes, answer: bytes) -> None:
    drawn = Drawn(80, 24)
    drawn.screen.feed(b"\x1b[H" + query)
    assert b"".join(drawn.answers) == answer
    assert without_queries(b"before" + query + b"after") == b"beforeafter"


def test_answers_come_in_the_order_of_the_queries() -> None:
    drawn = Drawn(80, 24)
    drawn.screen.feed(b"\x1b[6n\x1bP+q544e\x1b\\\x1b[c")
    assert drawn.answers == [b"\x1b[1;1R", b"\x1bP0+r\x1b\\", b"\x1b[?62;22c"]


@pytest.mark.parametrize(
    "shown", [b"\x1b[31m", b"\x1b[2J", b"\x1b]2;title\x07", b"\x1b[?25h", b"\x1b[4h", b"\x1b[1;5r"]
)
def test_viewers_get_what_is_no_query(shown: bytes) -> None:
    assert without_queries(shown) == shown


CLIPBOARD = [
    b"\x1b]52;c;c2VjcmV0\x07",
    b"\x1b]52;c;c2VjcmV0\x1b\\",
    b"\x1b]52;c;c2VjcmV0",  # any escape ends it
    b"\x1b]52;;c2VjcmV0\x07",
    b"\x1b]052;c;c2VjcmV0\x07",
    b"\x1b\x00]5\x012\x1f;c;c2VjcmV0\x07",
    b"\xc2\x9d52;c;c2VjcmV0\x07",
]


@pytest.mark.parametrize("use", CLIPBOARD)
def test_the_clipboard_is_not_for_programs(use: bytes) -> None:
    """However a program writes it, and wherever reads cut it."""
    whole = b"a" + use + b"\x1b[mb"
    for cut in range(len(whole) + 1):
        output = Output()
        parts = [output.add(whole[:cut]), output.add(whole[cut:]), output.rest()]
        assert b"".join(map(without_queries, parts)) == b"a\x1b[mb"
        assert b"c2VjcmV0" in b"".join(map(with_clipboard, parts))


@pytest.mark.parametrize("asks", [b"\x1b]52;c;?\x07", b"\x1b]52;c;\x00?\x1b\\", b"\x1b]52;;?"])
def test_nobody_reads_the_clipboard(asks: bytes) -> None:
    assert with_clipboard(b"a" + asks + b"\x1b[mb") == without_queries(b"a" + asks + b"\x1b[mb") == b"a\x1b[mb"


@pytest.mark.parametrize("end", [b"\x07", b"\x1b\\"])
def test_what_is_too_long_for_the_clipboard_is_dropped(end: bytes) -> None:
    output = Output()
    parts = [output.add(b"a\x1b]52;c;" + b"x" * 100_000), output.add(b"x" * 100_000), output.add(b"x" + end + b"b")]
    shown = b"".join(map(without_queries, [*parts, output.rest()]))
    assert shown.replace(end, b"") == b"ab"


@given(st.lists(st.one_of(PIECES, st.sampled_from([*QUERIES, b"\xff", b"\xe6\x97"])), max_size=30), st.data())
def test_output_is_cut_where_no_sequence_is_unfinished(pieces: list[bytes], data: st.DataObject) -> None:
    """Wherever reads cut the output, viewers get all of it, and no part of a query."""
    whole = b"".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    output = Output()
    parts = [output.add(whole[start:end]) for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    parts.append(output.rest())
    assert b"".join(parts) == whole
    assert b"".join(map(without_queries, parts)) == without_queries(whole)


def test_an_endless_sequence_does_not_keep_anybody_from_the_screen() -> None:
    live, back = Drawn(20, 5), Drawn(20, 5)
    live.screen.feed(b"shown\x1b]2;" + b"x" * 1_000_000)
    back.screen.feed(live.screen.draw(None))
    assert back.text() == "shown"


def test_a_sequence_without_end_is_passed_on() -> None:
    output = Output()
    assert output.add(b"\x1b]2;" + b"x" * 70_000) == b"\x1b]2;" + b"x" * 70_000
    assert output.add(b"y\x1b[") == b"y"
