"""Signing in without a password of this platform: a trusted backend, or an OpenID provider."""
