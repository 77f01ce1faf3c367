"""Run the evaluations of independent packages, check the claims they report, and write one report."""

__version__ = "0.1.0"
