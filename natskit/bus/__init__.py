"""The NATS side: connections, JetStream, output streams, and who may publish and subscribe where."""
