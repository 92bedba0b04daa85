"""The hub: authorises every connection, answers the API, and signs people in. See ARCHITECTURE.md, "Hub"."""
