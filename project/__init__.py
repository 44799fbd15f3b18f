"""Seeker: train, measure and compare language models that search. Importing this loads neither torch nor vllm."""

__version__ = "0.1.0"
