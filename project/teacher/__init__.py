"""Data that a larger model writes: whom to ask (`client`), and jobs that survive a kill (`jobs`, `journal`)."""
