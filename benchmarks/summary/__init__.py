"""Every number to hold: run, judged, told and drawn."""
