"""Find the problems of a platform. Each finding has its evidence and the command that fixes it.

Each check examines the running platform and returns its findings. For each check a test breaks the real thing.
"""
