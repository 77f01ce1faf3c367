"""The experiments behind `onestep-diffusion eval`."""
