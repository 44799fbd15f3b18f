"""MLflow: the store, the logger, what each run records of itself, and runs side by side."""
