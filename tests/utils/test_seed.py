"""Random numbers depend on what they are for, and on nothing else."""

from __future__ import annotations

import random

import numpy as np
import torch

from ecggen.utils.seed import derive_seed, seed_everything


def test_derived_seeds_are_the_same_everywhere():
    # First eight bytes, little endian, of: printf '1\x1fepoch\x1f3' | sha256sum; without the lowest bit.
    assert derive_seed(1, "epoch", 3) == 6735784425211122443
    assert derive_seed(1, "epoch", 3) != derive_seed(1, "epoch", 4) != derive_seed(2, "epoch", 4)
    assert derive_seed("ab", "c") != derive_seed("a", "bc")
    assert all(0 <= derive_seed(i) < 2**63 for i in range(200))


def test_every_generator_is_seeded():
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        seed_everything(2**40 + 5)
        first = draw()
        second = draw()
        seed_everything(2**40 + 5)
        assert draw() == first != second
        seed_everything(6)
        assert draw() != first
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])
