"""Encoders, decoders and the two autoencoders."""
