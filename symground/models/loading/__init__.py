"""Models from named sizes, from folders and from the hub."""
