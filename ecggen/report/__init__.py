"""The report page, its figures, and the run in words."""
