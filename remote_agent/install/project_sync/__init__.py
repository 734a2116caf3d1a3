"""Syncs a project's code to this host: lists existing files, installs received ones, finds workers that use them."""
