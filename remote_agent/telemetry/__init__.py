"""Measurements on this host: processes, the host, GPUs and their allocation, signs of a hang. Start with
`sampler.py`.
"""
