"""Adapters that make a detector look like those of another package; each module needs that package."""
