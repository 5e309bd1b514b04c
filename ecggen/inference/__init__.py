"""Use of a trained model: load, render, personalise, embed."""
