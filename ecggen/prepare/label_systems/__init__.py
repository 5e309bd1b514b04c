"""Who and what a record is, in each system of labels."""
