"""Files from a server: one transfer, many, a whole database."""
