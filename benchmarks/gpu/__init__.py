"""The GPU record: everything that wants a GPU, in one command."""
