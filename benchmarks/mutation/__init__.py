"""Whether the tests notice when one place of `pipelines/` says something else."""
