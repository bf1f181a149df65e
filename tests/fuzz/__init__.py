"""schemathesis against the real API: a service with a job in every state, hooks that keep it alive, and the run."""
