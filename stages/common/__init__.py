"""What several stages share. Importing any module here starts nothing and imports no TensorFlow."""
