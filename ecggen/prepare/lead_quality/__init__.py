"""The vocabulary of quality, noise, and electrodes in the wrong place."""
