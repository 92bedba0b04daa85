"""Documents: one nats-server, a hub and two keepers."""
