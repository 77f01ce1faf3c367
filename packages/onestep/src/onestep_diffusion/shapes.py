"""The shapes that signatures speak of. n counts samples, d coordinates; images are NHWC, so *shape is (h, w, c)."""

from jaxtyping import Array, Float, Int

Batch = Float[Array, "n *shape"]
Points = Float[Array, "n d"]
PerSample = Float[Array, " n"]
Levels = Float[Array, " n"] | float  # noise levels, one a sample or one for all
Grid = Float[Array, " levels"]  # noise levels that do not belong to samples
Elementwise = Float[Array, "..."]
Scalar = Float[Array, ""]
Uniforms = Float[Array, "n k"]  # k uniform random numbers a sample
Count = Int[Array, ""]
