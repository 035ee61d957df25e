"""The GPU record: everything that needs a GPU, in one command."""
