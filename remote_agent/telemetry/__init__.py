"""What is measured on this host: processes, the host itself, GPUs and who has which, signs of a hang. Start with
`sampler.py`."""
