"""JSON-RPC 2.0: every request gets the answer the specification promises, and no request breaks the server."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natskit import rpc
from natskit.errors import SettingsError


def table() -> rpc.Methods[str]:
    methods: rpc.Methods[str] = rpc.Methods()

    @methods.method("who")
    async def who(caller: str) -> str:
        return caller

    @methods.method("add")
    async def add(caller: str, left: int, right: int = 1) -> dict[str, Any]:
        return {"by": caller, "sum": left + right}

    @methods.method("fail")
    async def fail(caller: str) -> None:
        raise RuntimeError(f"a secret of {caller}")

    @methods.method("refuse")
    async def refuse(caller: str) -> None:
        raise rpc.RpcError("conflict", f"{caller} was too late", version="2")

    return methods


async def ask(body: bytes) -> dict[str, Any]:
    answer = await table().answer("me", body)
    assert answer is not None
    return dict(json.loads(answer))


async def test_a_call_gets_the_caller_and_typed_parameters() -> None:
    answer = await ask(rpc.encode_request("add", {"left": 2}, "abc"))
    assert answer == {"jsonrpc": "2.0", "id": "abc", "result": {"by": "me", "sum": 3}}


@pytest.mark.parametrize(
    ("method", "params", "message"),
    [
        ("add", {}, "add needs the parameter 'left'"),
        ("add", {"left": 1, "wrong": 1}, "add has no parameter 'wrong'"),
        ("add", {"left": "x"}, "add: left: Input should be a valid integer"),
        ("who", {"x": 1}, "who takes no parameters"),
    ],
)
async def test_bad_parameters_are_named(method: str, params: dict[str, Any], message: str) -> None:
    error = (await ask(rpc.encode_request(method, params)))["error"]
    assert error["code"] == rpc.INVALID_PARAMS
    assert message in error["message"]


async def test_an_unknown_method_is_named() -> None:
    error = (await ask(rpc.encode_request("nope")))["error"]
    assert error["code"] == rpc.METHOD_NOT_FOUND
    assert "nope" in error["message"]


async def test_an_error_of_ours_reaches_the_caller_whole() -> None:
    answer = await table().answer("me", rpc.encode_request("refuse"))
    with pytest.raises(rpc.RpcError, match="me was too late") as caught:
        rpc.decode_response(answer or b"")
    assert (caught.value.kind, caught.value.data) == ("conflict", {"version": "2"})


async def test_a_failure_keeps_its_secrets_and_says_where_to_look(caplog: pytest.LogCaptureFixture) -> None:
    rpc.set_program_name("hub-7")
    answers = [await ask(rpc.encode_request("fail")) for _ in range(2)]
    assert {answer["error"]["code"] for answer in answers} == {rpc.INTERNAL_ERROR}
    assert "secret" not in json.dumps(answers)
    numbers = []
    for answer, record in zip(answers, caplog.records, strict=True):
        with pytest.raises(rpc.RpcError) as caught:
            rpc.decode_response(json.dumps(answer).encode())
        where, host = caught.value.data, socket.gethostname()
        assert (where["program"], where["host"]) == ("hub-7", host)
        assert f"internal error {where['id']} in hub-7 on host {host}" in str(caught.value)
        assert f"internal error {where['id']}:" in record.getMessage()
        assert record.exc_info is not None
        numbers.append(where["id"])
    assert len(set(numbers)) == 2


async def test_a_notification_gets_no_answer() -> None:
    assert await table().answer("me", b'{"jsonrpc":"2.0","method":"who"}') is None
    assert await table().answer("me", b'{"jsonrpc":"2.0","method":"fail"}') is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
async def test_whatever_comes_in_an_error_goes_out(body: bytes) -> None:
    answer = await table().answer("me", body)
    if answer is not None:
        assert "error" in json.loads(answer)


@given(method=st.text(max_size=20), params=st.dictionaries(st.text(max_size=5), json_values, max_size=3))
async def test_any_call_gets_exactly_one_answer_with_its_id(method: str, params: dict[str, Any]) -> None:
    answer = await ask(rpc.encode_request(method, params, 7))
    assert answer["id"] == 7
    assert ("result" in answer) != ("error" in answer)


@given(st.binary(max_size=100))
def test_a_bad_answer_is_an_error_of_ours(body: bytes) -> None:
    with pytest.raises(rpc.RpcError):
        rpc.decode_response(body)


def test_a_name_is_given_once_and_every_parameter_has_a_type() -> None:
    methods = table()
    with pytest.raises(SettingsError, match="'who' is already registered"):
        methods.method("who")(table()._table["who"].handler)
    with pytest.raises(SettingsError, match="'left' needs a type annotation"):

        @methods.method("untyped")
        async def untyped(caller: str, left) -> None:  # type: ignore[no-untyped-def]
            del caller, left


def test_a_package_that_is_not_there_is_named() -> None:
    with pytest.raises(SettingsError, match="'no_such_package'"):
        rpc.load_methods("natskit.project", "natskit_project", ["no_such_package"])
