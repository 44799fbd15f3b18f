"""Rewards: episode x question -> float, with its breakdown."""
