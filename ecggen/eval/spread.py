"""The old names of ecggen.eval.workers."""

from ecggen.eval.workers import Workers as Spread

Machines = str
__all__ = ["Machines", "Spread"]
