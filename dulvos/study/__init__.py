"""The study: rows, runs, evaluation, steps and their runner, the paper's numbers, tables and figures."""
