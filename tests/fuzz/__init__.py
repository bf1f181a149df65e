"""What is made up to break things: schemathesis against the real API, and files for the checker of data.

``service``, ``hooks`` and ``run`` are of the API: a service with a job in every state, what keeps it alive, the rounds.
``data`` is what must hold of any file; ``guided`` leads a fuzzer through the checker, which lives in ``under``.
"""
