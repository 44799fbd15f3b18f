"""Agent traces -> training sets. Pure transformations: no torch, no network, no language model.

The stages, each a verb of `seeker data` and each reading what the one before it wrote:

- `ingest.py` (`traces`): foreign logs -> `Trace` rows, by the readers in `readers/`, made uniform by `tidy.py`.
- `multiturn.py`: a trace -> one `Conversation` in either dialect.
- `steps.py`: a trace -> one sample per search result (context up to it, target after it).
- `summaries.py`: a step sample -> the same with an extractive summary of its context.
- `phases.py`: traces -> the training and validation sets of the three phases, split by question.

`table.py` holds what they share: reading trace files, the table of features and its filters, counts for people.
"""
