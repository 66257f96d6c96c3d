"""What events are shown as: sounds as WAV, as pictures, and on TensorBoard's page of audio."""

import csv
import io
import json
import wave

import numpy as np
import pytest
import torch
from command import QUICK, armodels, done
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from armodels import charts, views
from armodels.alphabet import LINE, Alphabet
from armodels.checkpoints import restore
from armodels.data.audio import Audio
from armodels.data.sine import Sine
from armodels.density.stream import after_prompt, with_length
from armodels.density.walk import walk
from armodels.spec import ContextSpec, DataSpec
from armodels.waveform import PAUSE, Waveform, write_wav

RATE = 400
SINE = (
    "data=sine", f"data.rate={RATE}", "data.frequencies=[40,100]", "data.length=32",
    "data.num_train=40", "data.num_valid=20", "data.num_test=20", "recipe=default",
    "model=rnn", "model.hidden_size=6", "trainer.batch_size=8",
    *(key for key in QUICK if "samples" not in key),
)  # fmt: skip


def heard(contents: bytes) -> tuple[np.ndarray, int]:
    """Samples (T,) of a WAV of 16 bits, and its rate."""
    with wave.open(io.BytesIO(contents)) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        frames = file.readframes(file.getnframes())
        return np.frombuffer(frames, "<i2") / 32768, file.getframerate()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sine")
    keys = ("trainer.max_steps=10", "trainer.eval_every=1", "samples.num=3", "out=run")
    done(folder, "train", *SINE, *keys)
    return folder


def test_a_checkpoint_says_what_a_sample_is(run):
    found = restore(run / "run").spec
    assert found.waveform == Waveform(RATE, "linear", 16)
    assert found.unit == "sample"
    assert DataSpec(**found.to_dict()) == found


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"rate": 0}, "rate is 0; it must be from 1 to 768,000"),
        ({"law": "a_law"}, "law of a sound is 'a_law'; it must be mu_law or linear"),
        ({"law": "mu_law"}, "µ-law has 256 levels, not 16"),
    ],
)
def test_what_is_no_waveform(keys, told):
    with pytest.raises(ValueError, match=told):
        Waveform(**({"rate": RATE, "law": "linear", "num_levels": 16} | keys))
    with pytest.raises(ValueError, match="has 16 levels, its waveform others"):
        DataSpec("a", "sequence", (4,), 16, "probability", waveform=Waveform(RATE, "linear", 8))


@pytest.mark.parametrize("num_levels", [4, 5, 16])
def test_levels_of_any_number_come_back(num_levels):
    waveform = Waveform(RATE, "linear", num_levels)
    levels = np.arange(num_levels)
    samples = waveform.decoded(levels)
    assert samples[num_levels // 2] == 0
    assert waveform.encoded(samples).tolist() == levels.tolist()
    assert waveform.encoded(np.array([-1.0, 1.0])).tolist() == [0, num_levels - 1]


# Files


def test_samples_are_sounds_of_their_own_levels(run):
    told = done(run, "sample", "run", "num=12", "device=cpu")
    folder = run / "run/samples"
    assert "sample-seed0-t1-00.wav to sample-seed0-t1-11.wav (12 files)" in told
    x = np.load(folder / "sample-seed0-t1.npz")["x"]
    assert x.shape == (12, 32)
    for i, levels in enumerate(x):
        samples, rate = heard((folder / f"sample-seed0-t1-{i:02}.wav").read_bytes())
        assert rate == RATE
        assert ((samples * 8).round() + 8).tolist() == levels.tolist()
    with Image.open(folder / "sample-seed0-t1.png") as picture:
        assert picture.size[0] > 300


@pytest.mark.parametrize(("typed", "length"), [("70", 70), ("0.2s", 80), ("1s", 400)])
def test_samples_may_be_longer_than_a_window(run, typed, length):
    done(run, "sample", "run", "num=2", f"length={typed}", "device=cpu")
    folder = run / "run/samples"
    assert np.load(folder / f"sample-seed0-t1-length{length}.npz")["x"].shape == (2, length)
    samples, _ = heard((folder / f"sample-seed0-t1-length{length}-1.wav").read_bytes())
    assert len(samples) == length


REFUSED = {
    "word": (["length=long"], "length is 'long'; it must be a number of values, or the seconds"),
    "none": (["length=0"], "length is 0; it must be at least 1"),
    "short": (["length=0.001s"], "length=0.001s is less than a sample"),
    "neighbours": (["length=9", "num_neighbours=1"], "leave out length"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_lengths_that_cannot_be(run, name):
    typed, sentence = REFUSED[name]
    assert sentence in armodels(run, "sample", "run", "device=cpu", *typed).error


def test_other_sounds_are_not_scored(run):
    other = [one for one in SINE if one.startswith("data")]
    assert armodels(run, "score", "run", *other, "device=cpu").code == 0
    other[1] = "data.rate=500"
    told = armodels(run, "score", "run", *other, "device=cpu").error
    assert "stand for other samples than those of sine-L16-32" in told


# A sound that goes on


def loud(folder, name: str, length: int, rate: int = RATE) -> np.ndarray:
    """Samples of a file that is written into the folder."""
    samples = np.sin(np.arange(length) / 3) / 2
    write_wav(folder / name, samples, rate)
    return samples


@pytest.fixture
def sf():
    return pytest.importorskip("soundfile", reason="needs soundfile: pip install '.[audio]'")


def test_a_clip_goes_on(run, sf):
    samples = loud(run, "clip.wav", 50)
    told = done(run, "complete", "run", "prompt=clip.wav", "length=0.1s", "device=cpu")
    assert "prompt-clip-seed0-t1-length0.1s.wav" in told
    written, rate = heard((run / "run/samples/prompt-clip-seed0-t1-length0.1s.wav").read_bytes())
    assert (len(written), rate) == (50 + 40, RATE)
    assert np.abs(written[:50] - samples).max() <= 1 / 16 + 1e-4  # half a level
    assert len(np.unique(written[50:])) > 2
    keys = ("prompt_file=clip.wav", "num_completions=2", "device=cpu", "seed=1")
    done(run, "complete", "run", *keys)
    both = [
        heard((run / f"run/samples/prompt-clip-seed1-t1-{i}.wav").read_bytes())[0] for i in (0, 1)
    ]
    assert [len(one) for one in both] == [50 + RATE] * 2
    assert (both[0][:50] == both[1][:50]).all()
    assert (both[0] != both[1]).any()


def test_a_clip_has_the_number_that_eval_has_for_it(tmp_path, sf):
    rng = np.random.default_rng(0)
    for i in range(4):
        (tmp_path / "clips").mkdir(exist_ok=True)
        write_wav(tmp_path / f"clips/{i}.wav", rng.uniform(-1, 1, 200 + i).clip(-1, 1), RATE)
    data = ("data=audio", "data.path=clips", f"data.rate={RATE}", "data.length=32")
    model = ("recipe=default", "model=rnn", "model.hidden_size=6", "trainer.max_steps=2")
    done(tmp_path, "train", *data, *model, "trainer.batch_size=8", *QUICK, "out=run")
    (clip,) = Audio(tmp_path / "clips", rate=RATE, length=32).clips()["test"]
    done(tmp_path, "eval", "run", "device=cpu", "out=report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    done(tmp_path, "score", "run", "file=clips", "device=cpu", "out=all.csv")
    with open(tmp_path / "all.csv", newline="") as file:
        rows = [*csv.DictReader(file)]
    assert [int(row["symbols"]) for row in rows] == [200, 201, 202, 203]
    row = rows[len(clip) - 200]
    assert float(row["nats_per_symbol"]) == pytest.approx(report["nats_per_symbol"])
    assert row["file"] == f"clips/{len(clip) - 200}.wav"
    words = ("score", "run", f"file={row['file']}", "device=cpu", "out=one.csv")
    assert f"{report['nats_per_symbol']:.4f} nats/sample" in done(tmp_path, *words)
    (tmp_path / "tune.mid").write_bytes(b"MThd" + bytes(40))
    told = armodels(tmp_path, "score", "run", "file=tune.mid", "out=refused.csv").error
    assert "tune.mid cannot be read as sound" in told


def test_a_clip_of_another_rate_is_resampled(run, sf):
    loud(run, "fast.wav", 500, 10 * RATE)
    keys = ("prompt=fast.wav", "length=5", "seed=2", "device=cpu")
    done(run, "complete", "run", *keys)
    written, rate = heard((run / "run/samples/prompt-fast-seed2-t1-length5.wav").read_bytes())
    assert (len(written), rate) == (50 + 5, RATE)


def test_what_goes_on_hears_the_whole_prompt(run):
    model = restore(run / "run").model.double()  # what was heard 40 samples ago is faint
    prompts = torch.zeros(2, 40, dtype=torch.uint8)
    prompts[1, :38] = 15  # the last values alone would not tell them apart
    with torch.no_grad():
        params = []
        for prompt in prompts:
            steps = after_prompt(model, prompt, 3)
            params.append(steps.step(None, 0, steps.start(steps.pack(), 1), None)[0])
        whole = with_length(model, 41).net(torch.cat([prompts, prompts[:, :1]], 1))
        torch.testing.assert_close(torch.cat(params), whole[:, -1])
        assert not params[0].equal(params[1])
        values = walk(after_prompt(model, prompts[0], 3), 2, lambda s, _: prompts[:, s, None])
    assert values.shape == (2, 3, 1)


PROMPTS = {
    "broken": (b"RIFF", "broken.wav cannot be read as sound"),
    "text": (b"no sound at all", "text.wav cannot be read as sound"),
    "absent": (None, "prompt absent.wav does not exist"),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_clips_that_cannot_be_are_refused(run, sf, name):
    contents, sentence = PROMPTS[name]
    if contents is not None:
        (run / f"{name}.wav").write_bytes(contents)
    typed = (f"prompt={name}.wav", "device=cpu")
    assert sentence in armodels(run, "complete", "run", *typed).error


def test_an_empty_clip_and_one_that_was_cut_off_are_refused(run, sf):
    loud(run, "empty.wav", 0)
    told = armodels(run, "complete", "run", "prompt=empty.wav", "device=cpu").error
    assert "empty.wav cannot be read as sound: it holds no samples" in told
    loud(run, "cut.wav", 900)
    (run / "cut.wav").write_bytes((run / "cut.wav").read_bytes()[:500])
    told = armodels(run, "complete", "run", "prompt=cut.wav", "device=cpu").error
    assert "it is cut off" in told


# What is shown while a model is trained


def test_tensorboard_plays_what_the_model_says(run):
    events = EventAccumulator(str(run / "run"), size_guidance={"audio": 0, "images": 0}).Reload()
    tags = events.Tags()
    assert tags["audio"] == ["view/sound"]
    assert "view/samples" in tags["images"]
    last = events.Audio("view/sound")[-1]
    assert last.step == 10
    assert last.sample_rate == RATE
    samples, rate = heard(last.encoded_audio_string)
    pause = round(PAUSE * RATE)
    assert (len(samples), rate) == (3 * 32 + 2 * pause, RATE)
    assert not samples[32 : 32 + pause].any()
    written, _ = heard((run / "run/samples/step-0000010.wav").read_bytes())
    assert np.abs(written - samples).max() < 1e-4
    assert events.Images("view/samples")[-1].width > 300


# The one place


def test_each_kind_of_data_is_shown_as_its_own():
    x = torch.tensor([[0, 1, 1], [1, 0, 0]], dtype=torch.uint8)
    plain = DataSpec("a", "sequence", (3,), 2, "probability")
    found = views.view(x, plain)
    assert found.picture is not None
    assert (found.text, found.sound, found.files) == (None, None, {})
    text = DataSpec("a", "sequence", (3,), 2, "probability", alphabet=Alphabet((97, 98), "char"))
    assert views.view(x, text) == views.View(
        text=f"abb\n{LINE}\nbaa", files={".txt": f"abb\n{LINE}\nbaa".encode()}
    )
    many = torch.randint(256, (70, 50), dtype=torch.uint8)
    sound = DataSpec(
        "a", "sequence", (50,), 256, "probability", waveform=Waveform.of(8000, "mu_law")
    )
    found = views.view(many, sound)
    assert (found.text, len(found.files), found.sound.rate) == (None, 70, 8000)
    assert len(found.sound.samples) == views.MOST_HEARD * 50 + (views.MOST_HEARD - 1) * 2000


def test_labels_are_said():
    label = ContextSpec("digit", (), 3)
    assert views.titles(label, torch.tensor([2, 0])) == ["digit 2", "digit 0"]
    assert views.titles(None, None) == views.titles(ContextSpec("v", (2,), None), None) == []


@pytest.mark.parametrize("length", [1, 2, 40, 5000])
def test_sounds_of_any_length_are_drawn(length):
    silence = np.zeros((1, length), np.float32)
    assert charts.sounds(silence, 8000, "a").shape[0] == 3


def test_a_spectrogram_shows_where_a_tone_is():
    time = torch.arange(8000) / 8000
    found = charts._decibels(torch.sin(2 * torch.pi * 1000 * time))
    bins = len(found)
    assert abs(found[:, 50].argmax() - (bins - 1) / 4) <= 1  # a quarter of 4 kHz
    assert found.max() == 0
    assert found.min() >= -80


def test_sines_are_heard_as_they_are_drawn():
    source = Sine(length=64, levels=256, noise=0.0, frequencies=[500], num_phases=1)
    splits = source.load()
    samples = source.spec.waveform.decoded(splits.test[0].numpy())
    expected = np.sin(2 * np.pi * 500 * np.arange(64) / 8000)
    assert np.abs(samples - expected).max() < 0.02
