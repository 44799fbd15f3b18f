"""Documents to passages, index, retrievers and server."""
