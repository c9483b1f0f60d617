"""The official Python client against a running system: models, chat, streams, an abort, errors, files and a batch. Usage: client.py BASE_URL"""

import json
import sys
import time

import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)
PROMPT = "Solve the following math problem. Make sure to put the answer (and only answer) inside \\boxed{}.\n\nWhat is 17 + 25?"
messages = [{"role": "user", "content": PROMPT}]


def check(what, holds):
    print(("ok     " if holds else "FAILED ") + what)
    if not holds:
        sys.exit(1)


def refused(kind, call):
    try:
        call()
    except kind as error:
        return error
    return None


check("models", [model.id for model in client.models.list()] == ["student", "talker"])
check("one model", client.models.retrieve("talker").owned_by == "mathllm")
error = refused(openai.NotFoundError, lambda: client.models.retrieve("other"))
check("unknown model", error is not None and error.code == "model_not_found")

raw = client.chat.completions.with_raw_response.create(model="student", messages=messages)
whole = raw.parse()
text = whole.choices[0].message.content
check("chat: the answer", "\\boxed{42}" in text)
check("chat: finish reason and usage", whole.choices[0].finish_reason == "stop" and whole.usage.completion_tokens > 0)
check("chat: the wait in the headers", int(raw.headers["x-mathllm-queue-wait-ms"]) >= 0)
cut = client.chat.completions.create(model="student", messages=messages, max_tokens=2)
check("chat: cut by max_tokens", cut.choices[0].finish_reason == "length" and cut.usage.completion_tokens == 2)

chunks = list(
    client.chat.completions.create(
        model="student",
        messages=messages,
        stream=True,
        stream_options={"include_usage": True},
        temperature=0.2,
        seed=1,
        extra_headers={"X-Mathllm-Cache": "off", "X-Mathllm-Priority": "interactive"},
    )
)
check("stream: the text", "\\boxed" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices))
check("stream: several pieces, then the usage", len(chunks) > 3 and chunks[-1].usage.total_tokens > 0)
check("stream: finish reason", chunks[-2].choices[0].finish_reason == "stop")

stream = client.chat.completions.create(model="talker", messages=[{"role": "user", "content": "Say it."}], stream=True)
next(iter(stream))
stream.close()
check("stream: left after the first piece", True)

for field in ({"n": 2}, {"logprobs": True}, {"tools": [{"type": "function", "function": {"name": "f"}}]}):
    error = refused(openai.BadRequestError, lambda: client.chat.completions.create(model="student", messages=messages, **field))
    check(f"refused: {json.dumps(field)}", error is not None and error.param == next(iter(field)))
error = refused(
    openai.BadRequestError,
    lambda: client.chat.completions.create(model="student", messages=[{"role": "user", "content": "1 + " * 5000}]),
)
check("refused: too long for the context", error is not None and error.code == "context_length_exceeded")

lines = [
    {"custom_id": f"{i}", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "student", "messages": [{"role": "user", "content": PROMPT.replace("17", str(i))}]}}
    for i in range(20)
]
lines.append({"custom_id": "wrong", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "other", "messages": messages}})
content = "\n".join(json.dumps(line) for line in lines).encode()
file = client.files.create(file=("requests.jsonl", content), purpose="batch")
check("file: uploaded, listed, read back", file.bytes == len(content) and file.id in [each.id for each in client.files.list()] and client.files.content(file.id).content == content)
batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"run": "1"})
until = time.monotonic() + 120
while batch.status not in ("completed", "failed", "cancelled") and time.monotonic() < until:
    time.sleep(0.2)
    batch = client.batches.retrieve(batch.id)
check("batch: completed", batch.status == "completed" and batch.request_counts.completed == 20 and batch.request_counts.failed == 1)
answers = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
right = sum(f"\\boxed{{{int(each['custom_id']) + 25}}}" in each["response"]["body"]["choices"][0]["message"]["content"] for each in answers)
check(f"batch: answers in order, {right} of 20 right", [each["custom_id"] for each in answers] == [str(i) for i in range(20)] and right >= 18)
errors = [json.loads(line) for line in client.files.content(batch.error_file_id).text.splitlines()]
check("batch: the wrong line in the error file", [each["custom_id"] for each in errors] == ["wrong"])
check("batch: listed", batch.id in [each.id for each in client.batches.list(limit=5)])
other = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
check("batch: cancelled", client.batches.cancel(other.id).status in ("cancelling", "cancelled", "completed"))
check("file: deleted", client.files.delete(file.id).deleted)
print(f"openai {openai.__version__}, Python {sys.version.split()[0]}: all of it")
