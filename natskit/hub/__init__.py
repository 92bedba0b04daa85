"""The hub: authorises every connection, answers the API, and signs people in.

See ARCHITECTURE.md, "The flow of a message" and "What holds when something dies".
"""
