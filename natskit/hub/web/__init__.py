"""The hub over HTTP: routes, responses, sign-in options, TLS."""
