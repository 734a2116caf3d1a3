"""Getting an agent onto a host: inventory, bundle, installer over SSH."""
