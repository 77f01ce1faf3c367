"""The experiments behind `pmae eval`."""
