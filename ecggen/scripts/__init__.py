"""Stand-alone command-line scripts."""
