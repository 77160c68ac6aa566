"""What a person runs outside the graph."""
