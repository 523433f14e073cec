"""Whether everything works on one NVIDIA card, and how fast: `make gpu-check`."""
