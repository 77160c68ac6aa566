"""The pipeline: one script per stage of dvc.yaml, of the same name."""
