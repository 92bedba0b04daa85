"""Operating system functions that every program uses: life cycle, signals, file descriptors."""
