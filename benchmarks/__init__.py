"""Measurements. This is a package, so that an installed package named benchmarks is not imported in its place."""
