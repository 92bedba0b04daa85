"""The state of a platform in JetStream, as a hub reads and changes it."""
