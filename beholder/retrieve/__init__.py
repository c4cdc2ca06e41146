"""Finding images: encoders, indexes, queries."""
