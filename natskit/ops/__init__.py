"""What a deploy or an operator runs: restarts, health, keys, streams, the audit log."""
