"""Phase after phase: trainings that go on from each other's weights, as one pipeline."""
