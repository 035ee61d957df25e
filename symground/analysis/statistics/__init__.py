"""From tables of scores and gains to intervals, tests, mixed models and curves; no model is run."""
