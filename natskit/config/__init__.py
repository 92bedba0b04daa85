"""A deploy's configuration: every setting, what hosts have to agree on, and the files that templates make of it."""
