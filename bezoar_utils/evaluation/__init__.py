"""What is measured: benchmarks, two-turn questions, intervals, claims, ablations."""
