"""Search over HTTP: wire format, batches over clients, cache, application, command, and a handle that starts it."""
