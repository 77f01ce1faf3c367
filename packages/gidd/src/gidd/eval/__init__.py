"""Judges and experiments: what the samples of a model are worth."""
