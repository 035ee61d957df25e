"""Forecasts of kernels' speed from their machine code, without a GPU."""
