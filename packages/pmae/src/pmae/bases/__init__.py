"""Orthonormal bases of image space."""
