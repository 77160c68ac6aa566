"""Where the pipeline's files are: the outputs of dvc.yaml, by name."""

from pathlib import Path

RAW = Path("data/raw")
DOWNLOADS = Path("data/downloads")  # outside DVC, which deletes outputs before a stage runs
IMAGES = Path("data/images")
FEATURES = Path("data/features")
PREDICTIONS = Path("data/predictions")
GALLERY = Path("data/gallery")
MODELS = Path("models")
METRICS = Path("metrics")
PLOTS = Path("plots")
REPORT = Path("reports/index.html")
BACKUP = Path(".backup")  # training that was interrupted; outside DVC for the same reason

BACKBONE = MODELS / "backbone.keras"
HEAD = MODELS / "head.keras"
FINE_TUNED = MODELS / "fine_tuned.keras"
CLASSIFIERS = {"head": HEAD, "fine_tuned": FINE_TUNED}  # what is evaluated, in this order
TRAINED_BY = {"head": "train_head", "fine_tuned": "fine_tune"}  # classifier to stage
