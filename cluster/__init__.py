"""A cluster of small machines in Docker for trying and testing deploys. Each runs systemd, as a real host does.

``make cluster`` and the tests start the same machines: :mod:`cluster.machines` defines them, :mod:`cluster.lifecycle`
starts and removes them. ``docker/`` holds the recipe of their image.
"""
