"""Stage preprocess: records read, judged, filtered, resampled."""
