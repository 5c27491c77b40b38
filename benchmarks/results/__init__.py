"""Every experiment of the coursework: what was published, what our runs found, and the command that runs them.

`python -m benchmarks.results run` runs whatever has no run yet, and goes on with what was stopped;
`python -m benchmarks.results` writes docs/RESULTS.md, its pictures and the configs' headers from the runs there are.
"""
