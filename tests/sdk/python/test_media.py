"""Images, speech, transcripts and videos: binary in both directions."""

import base64
import hashlib
import io
import time

import httpx2
import openai
import pytest

from conftest import BASE_URL

PNG = b"\x89PNG\r\n\x1a\n"


def pixel(client):
    return base64.b64decode(client.images.generate(model="gpt-image-1", prompt="blue").data[0].b64_json)


def test_images(client):
    made = client.images.generate(model="gpt-image-1", prompt="蓝色", n=2)
    assert len(made.data) == 2 and base64.b64decode(made.data[0].b64_json).startswith(PNG)
    image = ("pixel.png", pixel(client), "image/png")
    edited = client.images.edit(model="gpt-image-1", image=image, prompt="bluer")
    assert base64.b64decode(edited.data[0].b64_json).startswith(PNG)
    several = client.images.edit(model="gpt-image-1", image=[image, image], prompt="both")
    assert several.data
    varied = client.images.create_variation(model="gpt-image-1", image=image)
    assert varied.data


def test_images_streamed(client):
    events = list(client.images.generate(model="gpt-image-1", prompt="blue", stream=True, partial_images=1))
    assert [event.type for event in events] == ["image_generation.partial_image", "image_generation.completed"]


def test_speech_is_streamed(client):
    arrivals, size = [], 0
    with client.audio.speech.with_streaming_response.create(
        model="tts-1", voice="alloy", input="a sentence that is long enough for some chunks " * 4
    ) as answer:
        assert answer.headers["content-type"] == "audio/mpeg"
        for chunk in answer.iter_bytes():
            arrivals.append(time.monotonic())
            size += len(chunk)
    assert size % 1024 == 0 and size >= 8 * 1024
    assert len(arrivals) >= 4 and arrivals[-1] - arrivals[0] > 0.05


def test_transcription_formats(client):
    audio = b"RIFF" + bytes(range(256)) * 400
    digest = hashlib.sha256(audio).hexdigest()
    file = lambda: ("voice.wav", io.BytesIO(audio), "audio/wav")
    plain = client.audio.transcriptions.create(model="whisper-1", file=file())
    assert f"{len(audio)} bytes, sha256 {digest}" in plain.text
    text = client.audio.transcriptions.create(model="whisper-1", file=file(), response_format="text")
    assert digest in text
    verbose = client.audio.transcriptions.create(model="whisper-1", file=file(), response_format="verbose_json")
    assert verbose.segments and verbose.duration == 2.0
    translated = client.audio.translations.create(model="whisper-1", file=file())
    assert digest in translated.text


def test_transcription_streamed(client):
    stream = client.audio.transcriptions.create(
        model="gpt-4o-transcribe", file=("voice.wav", b"RIFF", "audio/wav"), stream=True
    )
    events = list(stream)
    assert events[-1].type == "transcript.text.done"
    assert "".join(event.delta for event in events[:-1]) == events[-1].text


@pytest.mark.parametrize("model_first", [True, False])
def test_transcription_in_either_order_of_fields(client, model_first):
    """The model may stand behind a file of some MiB: SDKs differ in the order of a form's fields."""
    audio = bytes(3 << 20)
    model = ("model", (None, "whisper-1"))
    file = ("file", ("long.wav", audio, "audio/wav"))
    answer = httpx2.post(
        BASE_URL + "/audio/transcriptions",
        headers={"authorization": f"Bearer {client.api_key}"},
        files=[model, file] if model_first else [file, model],
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    assert hashlib.sha256(audio).hexdigest() in answer.json()["text"]


def test_video_from_prompt_to_content(client):
    video = client.videos.create_and_poll(model="sora-2", prompt="a calm sea", seconds="4", poll_interval_ms=100)
    assert video.status == "completed" and video.progress == 100
    content = client.videos.download_content(video.id).read()
    assert len(content) == 256 << 10
    assert video.id in [other.id for other in client.videos.list(limit=5)]
    remixed = client.videos.remix(video.id, prompt="a rough sea")
    assert remixed.remixed_from_video_id == video.id
    assert client.videos.delete(video.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(video.id)
