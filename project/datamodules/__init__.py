"""LightningDataModules for each processed set, and the plan that turns samples into batches."""
