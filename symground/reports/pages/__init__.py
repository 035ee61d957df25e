"""HTML pages: of a study or several, and of a corpus. Each is one file that needs no other."""
