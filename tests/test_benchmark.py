"""What the benchmarks share."""

import numpy as np
import pytest

from ecggen.benchmark import median_beats, parser, whole_beats


def test_the_median_beat_is_that_of_whole_beats() -> None:
    ecg = np.zeros((2, 1, 40), np.float32)
    for peak, height in ((1, 9), (10, 1), (20, 2), (30, 5), (38, 9)):  # the first and the last are cut off
        ecg[0, 0, peak] = height
    beats = median_beats(ecg, [np.array([1, 10, 20, 30, 38]), np.array([2])], 3, 4)
    assert beats.shape == (2, 1, 7)
    assert beats[0, 0].tolist() == [0, 0, 0, 2, 0, 0, 0]
    assert np.isnan(beats[1]).all()


def test_whole_beats_are_found_in_the_lead_that_is_named() -> None:
    time = np.arange(500) / 100
    lead = np.exp(-(((time + 0.4) % 0.8 - 0.4) ** 2) / 0.0002).astype(np.float32)
    beats = whole_beats(np.stack([lead, 2 * lead])[None], lead[None], 100.0)
    assert beats.shape == (1, 2, 90)
    assert beats[0].argmax(1).tolist() == [30, 30]
    np.testing.assert_allclose(beats[0].max(1), [1, 2], atol=0.05)


def test_every_script_takes_a_checkpoint_windows_and_a_split(capsys) -> None:
    args = parser("What it does.").parse_args(["c.pt", "w"])
    assert (args.checkpoint, args.windows, args.split) == ("c.pt", "w", "validation")
    with pytest.raises(SystemExit):
        parser("").parse_args(["c.pt", "w", "--split", "train"])
    assert "invalid choice" in capsys.readouterr().err
