"""Settings of every host. natskit/config/settings.py lists them all, with types, units, defaults and reasons.

To change one, remove its comment sign and run `make up` again; a deploy changes only what depends on it. For one run
alone: natskit deploy inventories/local.py --data proxy_port=8443
"""

# nats_port = 4222
# nats_websocket_port = 5004
# nats_monitor_port = 8222
# hub_port = 8101                  # the second hub takes the next one
# proxy_port = 4043
# hub_session_sliding = 7 * 86400  # seconds a browser stays signed in without being seen
# hub_api_packages = ["my_platform"]
