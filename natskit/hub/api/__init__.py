"""The methods of the hub, and how requests over NATS reach them."""
