"""From WFDB records to windows: the edge where wfdb and scipy live."""
