"""Parameters of pipelines that tests run whole."""

MODEL = {
    "width": 16,
    "depth": 1,
    "heads": 2,
    "channels": [8, 16],
    "state_dim": 8,
    "basis": 4,
    "beat_len": 32,
}
