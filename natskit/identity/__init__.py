"""The identity of a platform: its keys, JWTs and certificates, and the folder they are in."""
