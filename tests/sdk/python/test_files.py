"""Files, uploads, batches, fine-tuning and vector stores: things that are made and asked for again."""

import hashlib

import openai
import pytest

from conftest import until


def test_file_comes_back_as_it_was(client):
    content = "第一行\n{}\n".encode() * 1000
    made = client.files.create(file=("data.jsonl", content), purpose="batch")
    assert made.bytes == len(content) and made.filename == "data.jsonl"
    assert client.files.retrieve(made.id).purpose == "batch"
    assert client.files.content(made.id).read() == content
    assert made.id in [file.id for file in client.files.list(limit=100)]
    assert client.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made.id)


def test_large_file_arrives_whole(client):
    content = bytes(range(256)) * (96 << 10)
    made = client.files.create(file=("large.bin", content), purpose="user_data")
    assert made.bytes == len(content)
    assert made.to_dict()["sample_sha256"] == hashlib.sha256(content).hexdigest()
    size = 0
    with client.files.with_streaming_response.content(made.id) as answer:
        for chunk in answer.iter_bytes():
            size += len(chunk)
    assert size == len(content)


def test_upload_in_parts(client):
    parts = [b"a" * 70_000, b"b" * 30_000]
    upload = client.uploads.create(bytes=100_000, filename="parts.txt", mime_type="text/plain", purpose="user_data")
    ids = [client.uploads.parts.create(upload.id, data=part).id for part in parts]
    done = client.uploads.complete(upload.id, part_ids=ids)
    assert done.status == "completed"
    assert client.files.content(done.file.id).read() == b"".join(parts)
    other = client.uploads.create(bytes=1, filename="x", mime_type="text/plain", purpose="user_data")
    assert client.uploads.cancel(other.id).status == "cancelled"


def test_batch(client):
    file = client.files.create(file=("in.jsonl", b"{}\n"), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"k": "v"}
    )
    done = until(lambda: (got := client.batches.retrieve(batch.id)).status == "completed" and got, every=0.1)
    assert done and done.metadata == {"k": "v"}
    assert b"custom_id" in client.files.content(done.output_file_id).read()
    assert batch.id in [other.id for other in client.batches.list(limit=10)]
    other = client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")
    assert client.batches.cancel(other.id).status in ("cancelling", "cancelled")


def test_fine_tuning(client):
    job = client.fine_tuning.jobs.create(model="gpt-4o-mini", training_file="file-any")
    assert client.fine_tuning.jobs.retrieve(job.id).status in ("queued", "running", "succeeded")
    assert client.fine_tuning.jobs.list_events(job.id).data[0].object == "fine_tuning.job.event"
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"


def test_vector_store(client):
    file = client.files.create(file=("facts.txt", b"The sea is calm.\nAnd so on."), purpose="assistants")
    store = client.vector_stores.create(name="facts")
    added = client.vector_stores.files.create(store.id, file_id=file.id)
    assert added.vector_store_id == store.id
    assert client.vector_stores.files.retrieve(file.id, vector_store_id=store.id).status == "completed"
    assert [one.id for one in client.vector_stores.files.list(store.id)] == [file.id]
    found = client.vector_stores.search(store.id, query="sea")
    assert list(found)[0].content[0].text == "The sea is calm."
    assert client.vector_stores.update(store.id, name="more").name == "more"
    assert client.vector_stores.retrieve(store.id).file_counts.completed == 1
    client.vector_stores.files.delete(file.id, vector_store_id=store.id)
    assert store.id in [one.id for one in client.vector_stores.list(limit=100)]
    assert client.vector_stores.delete(store.id).deleted
