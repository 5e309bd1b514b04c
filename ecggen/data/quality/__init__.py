"""Signal quality: flat, saturated, noisy, swapped and inverted leads."""
