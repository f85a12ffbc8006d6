"""Datasets as they are published: where their files are and what their annotations say. One module each."""
