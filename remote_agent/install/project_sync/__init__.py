"""A project's code on this host: what is there, putting in place what was sent, and who runs in it."""
