"""Hosts of your own: copy this file and group_data/ into a folder outside this repository, or let `natskit init` write
one, and put your names in.

pyinfra reads it as Python. Each list is a group of hosts, and the group says which role they play; a host that is in
several lists plays several roles. Hosts are named as this machine reaches them by SSH: a DNS name or an IPv4 address.
That is also how they reach each other, unless a host's platform_address says otherwise.

    natskit deploy --dry example.py    show what a deploy would change
    natskit deploy example.py          do it

Settings of all hosts belong in group_data/all.py beside the inventory, those of a group in group_data/nats.py and so
on, and those of one host beside its name, as with the proxy below. The settings reference lists all settings.
"""

from pathlib import Path

_everywhere = {
    # How pyinfra gets in: a key, a user who may use sudo, and only into hosts whose keys are in known_hosts. Get them
    # there by logging in once, or with ssh-keyscan, and compare the fingerprints with those on the hosts' consoles.
    "ssh_user": "deploy",
    "ssh_key": "~/.ssh/id_ed25519",
    "ssh_strict_host_key_checking": "yes",
    # Run every command as root. If sudo asks for a password, set _sudo_password, and not in a file that others read.
    "_sudo": True,
    # The folder on this machine for the platform's keys. They give full control over the platform: back them up, share
    # them with nobody, and always deploy from this machine.
    "platform_control": str(Path("~/natskit/bus.example.org").expanduser()),
    # The host name in the site's URL. Its DNS entry must point to the proxy.
    "proxy_name": "bus.example.org",
    "proxy_port": 443,
    # One hub on each host of the group; there are two of those.
    "hub_count": 1,
    "keeper_count": 1,
}

# A majority of these must run: of three, one may fail. They store the state, so give them good disks.
nats = (["nats-1.example.org", "nats-2.example.org", "nats-3.example.org"], _everywhere)

# Two, so that one can fail or be upgraded while the other answers.
hub = (["hub-1.example.org", "hub-2.example.org"], _everywhere)

# nginx, the only host that users connect to. Settings of one host are beside its name.
proxy = (
    [
        (
            "proxy.example.org",
            {
                # Your own certificate with its chain. By default the proxy uses one signed by the platform's own CA.
                # "proxy_certificate": "/etc/letsencrypt/live/bus.example.org/fullchain.pem",
                # "proxy_key": "/etc/letsencrypt/live/bus.example.org/privkey.pem",
            },
        )
    ],
    _everywhere,
)

# Hosts that run projects, each as a systemd unit with limits. They run your users' commands: use them for nothing else.
runner = (["runner-1.example.org", "runner-2.example.org"], _everywhere)

# Three machines that share the roles: one may fail, but without the proxy's machine users cannot connect.
#
#   nats = (["a.example.org", "b.example.org", "c.example.org"], _everywhere)
#   hub = (["a.example.org", "b.example.org"], _everywhere)
#   proxy = (["c.example.org"], _everywhere)
#   runner = (["b.example.org", "c.example.org"], _everywhere)
#
# Everything on one machine. The setting hub_count = 2 then gives it two hubs:
#
#   nats = hub = proxy = runner = (["bus.example.org"], _everywhere)
