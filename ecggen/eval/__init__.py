"""Evaluation protocols: arrays and a model in, numbers out."""
