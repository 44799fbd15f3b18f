"""The search engines. Those of an index rank places in its corpus; the others ask somebody else."""
