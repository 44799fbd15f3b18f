"""Agent traces -> training sets. Pure transformations: no torch, no network, no language model.

The stages, each a verb of `seeker data` and each reading what the one before it wrote:

- `ingest.py` (`traces`): foreign logs -> `Trace` rows, by the readers in `readers/`, made uniform by `tidy.py`; those stay that
  `filters.py` names.
- `multiturn.py`: a trace -> one `Conversation` in either dialect.
- `steps.py`: a trace -> one sample per search result (context up to it, target after it).
- `summaries.py`: a step sample -> the same with an extractive summary of its context.
- `phases.py`: traces, or samples with summaries -> the conversations of the phases.
- `split.py`: conversations -> train, validation and test by group; `check.py`: proof that these share
  nothing; `prepare.py`: traces, phases and split in one.
- `push.py`, `card.py`: the sets to the Hugging Face Hub, with a card from their manifests.

Each program but the last two is a function of a row that `project/streams.py` applies. `features.py` holds the columns that
filters name, `near_duplicates.py` tells which texts say nearly the same, `table.py` is what all share: a row as a trace, the
groups of the split, counts for people.
"""
