"""MutBench: tasks made by injecting small faults into packages that have a test suite."""
