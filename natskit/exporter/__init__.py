"""What Prometheus reads of a host: its programs, its projects, its nats-server, certificates and disks.

One program a host, without any right: it asks systemd, the monitoring port of nats-server and the ports with TLS, and
passes on what other programs have written for it. Hubs show their own metrics on a port of their own.
"""
