"""The benchmarks of `invoke bench <name>`: each module prints a table and writes build/bench/<name>.json."""
