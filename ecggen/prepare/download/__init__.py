"""Stage download: which records there are, and how they get here."""
