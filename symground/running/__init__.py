"""How work runs: parallel jobs, progress bars, and what the process does with freed memory."""

from symground.running.free_memory import LARGE_PASS, LARGE_TENSOR, keep_freed_memory, return_freed_memory
from symground.running.jobs import BACKENDS, Job, run_jobs
from symground.running.progress_bar import Bar, progress

__all__ = [
    "BACKENDS", "LARGE_PASS", "LARGE_TENSOR", "Bar", "Job", "keep_freed_memory", "progress", "return_freed_memory",
    "run_jobs",
]  # fmt: skip
