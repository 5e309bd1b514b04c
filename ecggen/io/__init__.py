"""Files in and out: WFDB records and annotations, arrays, tables."""
