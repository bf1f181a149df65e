"""A script as OpenAI's documentation writes it: upload, create, poll, list events, download. One line is changed."""

import sys
import time

from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8000/v1")  # <- the changed line; without it the script is OpenAI's
file = client.files.create(file=open(sys.argv[1], "rb"), purpose="fine-tune")  # noqa: SIM115 – as the documentation has it
job = client.fine_tuning.jobs.create(training_file=file.id, model="gpt-4o-mini-2024-07-18")
while job.status not in ("succeeded", "failed", "cancelled"):
    time.sleep(1)
    job = client.fine_tuning.jobs.retrieve(job.id)
for event in reversed(list(client.fine_tuning.jobs.list_events(job.id))):
    print(event.message)
if job.status != "succeeded":
    sys.exit(f"{job.id} {job.status}: {job.error and job.error.message}")
for id in job.result_files:
    client.files.content(id).write_to_file(client.files.retrieve(id).filename)
print(job.fine_tuned_model)
