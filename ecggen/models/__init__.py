"""The model (torch): blocks, SO(3), fast state and its updates, VCG generator, heads, assembly."""
