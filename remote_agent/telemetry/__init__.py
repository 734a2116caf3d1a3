"""What is measured on this host: processes, the host itself, GPUs and who has which. Start with `sampler.py`."""
