"""Authentication: the auth callout, passwords, sessions, tokens, and ending connections."""
