"""Other ways to a one-step generator, for comparison in the same training loop: SiD, SMT, iCT, MeanFlow."""
