"""Our own data sources, each a TFDS builder."""
