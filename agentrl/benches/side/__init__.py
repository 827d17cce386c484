"""Side evaluations: what a model knows, and what it refuses, before and after it was trained for something else."""
