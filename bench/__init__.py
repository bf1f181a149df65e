"""Speed, measured: ratios within one run where possible. ``docs/benchmarks.md`` keeps the results."""
