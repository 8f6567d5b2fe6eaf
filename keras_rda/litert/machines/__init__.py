"""Places where LiteRT files run."""
