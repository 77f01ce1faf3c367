"""Networks: denoisers, and the ratio networks that are their encoders."""
