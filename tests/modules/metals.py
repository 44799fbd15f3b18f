"""Five questions, each with a passage that answers it."""

from project.records import Passage, Question

METALS = ["Mercury", "Gold", "Iron", "Tin", "Lead"]
PASSAGES = [Passage(name.lower(), name, f"{name} is metal number {i}.") for i, name in enumerate(METALS)]
QUESTIONS = [Question(f"q{i}", f"Which metal has number {i}?", (n,), (n.lower(),), True) for i, n in enumerate(METALS)]
