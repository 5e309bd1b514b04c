"""The embedded data set: synthetic hearts with a known VCG."""
