"""Hosts of your own: copy this file and group_data/ into a folder outside this repository, or let `natskit init` write
one, and put your names in.

pyinfra reads it as Python. Each list is a group of hosts, and the group says which role they play; a host that is in
several lists plays several roles. Hosts are named as this machine reaches them by SSH: a DNS name or an IPv4 address.
That is also how they reach each other, unless a host's platform_address says otherwise.

    pyinfra example.py debug-inventory    what pyinfra makes of it
    pyinfra --dry example.py deploy.py    what a deploy would change
    pyinfra example.py deploy.py          do it

Settings of all hosts belong into group_data/all.py beside the inventory, those of a group into group_data/nats.py and
so on, and those of one host beside its name, as with the proxy below. natskit/settings.py has them all.
"""

from pathlib import Path

_everywhere = {
    # How pyinfra gets in: a key, a user who may use sudo, and only into hosts whose keys are in known_hosts. Get them
    # there by logging in once, or with ssh-keyscan, and compare the fingerprints with those on the hosts' consoles.
    "ssh_user": "deploy",
    "ssh_key": "~/.ssh/id_ed25519",
    "ssh_strict_host_key_checking": "yes",
    # Every command as root. Where sudo wants a password: _sudo_password; keep it out of files that others read.
    "_sudo": True,
    # The folder on this machine for the platform's keys. Whoever has it has the platform: back it up, share it with
    # nobody, and deploy from the machine that has it.
    "platform_control": str(Path("~/natskit/bus.example.org").expanduser()),
    # What people type into the address bar; its DNS name leads to the proxy.
    "proxy_name": "bus.example.org",
    "proxy_port": 443,
    # One hub on each host of the group; there are two of those.
    "hub_count": 1,
}

# A majority of these has to live: three may lose one. They hold the state, so give them good disks.
nats = (["nats-1.example.org", "nats-2.example.org", "nats-3.example.org"], _everywhere)

# Two, so that one can be lost or upgraded while the other answers.
hub = (["hub-1.example.org", "hub-2.example.org"], _everywhere)

# nginx, the only host that people reach. One host's own settings stand beside its name.
proxy = (
    [
        (
            "proxy.example.org",
            {
                # Your own certificate, with its chain; without one the proxy shows one by the platform's own CA.
                # "proxy_certificate": "/etc/letsencrypt/live/bus.example.org/fullchain.pem",
                # "proxy_key": "/etc/letsencrypt/live/bus.example.org/privkey.pem",
            },
        )
    ],
    _everywhere,
)

# Where projects run, each a systemd unit with limits. Commands of your users run here: nothing else should.
runner = (["runner-1.example.org", "runner-2.example.org"], _everywhere)

# Three machines that share the roles: one may be lost, and the proxy's takes the door with it.
#
#   nats = (["a.example.org", "b.example.org", "c.example.org"], _everywhere)
#   hub = (["a.example.org", "b.example.org"], _everywhere)
#   proxy = (["c.example.org"], _everywhere)
#   runner = (["b.example.org", "c.example.org"], _everywhere)
#
# Everything on one machine. The setting hub_count = 2 then gives it two hubs:
#
#   nats = hub = proxy = runner = (["bus.example.org"], _everywhere)
