"""The runner: starts and stops the project agents of one host, and brings them back."""
