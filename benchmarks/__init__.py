"""How fast raydissect is, and how it grows: `python -m benchmarks`, explained in BENCHMARKS.md."""
