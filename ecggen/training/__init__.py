"""Training beside the loop itself: checkpoints, resuming, augmentation, calibration, processes."""
