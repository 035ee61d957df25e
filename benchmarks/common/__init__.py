"""Inputs, clocks and memory, for every measurement."""
