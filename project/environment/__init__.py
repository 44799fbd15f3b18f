"""The search environment in message space; it never sees token ids."""
