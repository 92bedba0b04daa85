"""The hub: authorises every connection, answers the API, and signs people in.

See docs/explanation/architecture.md.
"""
