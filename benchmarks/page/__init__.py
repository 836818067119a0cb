"""docs/benchmarks.md: its pieces, sections, tables and plots."""
