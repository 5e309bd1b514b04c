"""WFDB headers, signal files and annotations: the only room that imports wfdb."""
