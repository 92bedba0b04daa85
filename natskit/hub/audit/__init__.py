"""The audit: the events that a hub writes."""
