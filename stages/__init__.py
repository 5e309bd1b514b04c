"""One script per stage of dvc.yaml, run from the repository root: python -m stages.train."""
