"""Inputs, timers and memory measurement, shared by all measurements."""
