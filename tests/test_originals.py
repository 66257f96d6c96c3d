"""Files of a user's own come back from a small file, by models of pictures, sounds, music, texts.

All by the command line; what a model knows less finely than the file has it comes back so.
"""

import numpy as np
import pytest
from command import QUICK, armodels, done
from test_export import train
from test_music import QUARTERED, save, tune

from armodels.data.midi import read_midi
from armodels.data.sound import read_clip
from armodels.waveform import Waveform, write_wav

pytest.importorskip("constriction")

RATE = 8000
STEPS = ("trainer.max_steps=2", "trainer.batch_size=8", *QUICK)


def back(folder, run, path, *keys):
    """What is written when a file or folder was compressed by a run."""
    done(folder, "compress", run, f"path={path}", "out=mine.arm", *keys)
    done(folder, "decompress", run, "path=mine.arm", "out=back")
    return folder / "back"


@pytest.mark.slow
def test_own_sounds_come_back(tmp_path):
    """Sample for sample, in folders, of any length; what is no sound is refused."""
    soundfile = pytest.importorskip("soundfile")
    rng, wave = np.random.default_rng(0), Waveform.of(RATE, "linear8")
    levels = [rng.integers(0, 256, size) for size in (200, 31, 64, 90)]
    (tmp_path / "clips/deep").mkdir(parents=True)
    for i, one in enumerate(levels):
        write_wav(tmp_path / f"clips/{'deep/' * (i % 2)}{i}.wav", wave.decoded(one), RATE)
    data = ("data=audio", "data.path=clips", f"data.rate={RATE}", "data.encoding=linear8")
    model = ("data.length=16", "model=rnn", "model.hidden_size=6", "recipe=default")
    done(tmp_path, "train", *data, *model, *STEPS, "out=rnn")
    found = back(tmp_path, "rnn", "clips")
    for i, one in enumerate(levels):
        name = f"{'deep/' * (i % 2)}{i}.wav"
        assert np.array_equal(wave.encoded(read_clip(found / name, RATE)), one)
        assert (found / name).read_bytes() == (tmp_path / "clips" / name).read_bytes()
    # What is lost is said: a rate, a channel, finer samples; nothing is by another kind of file.
    (tmp_path / "more/.deep").mkdir(parents=True)
    samples = wave.decoded(levels[0])
    for name, values, rate in (
        ("fast.wav", samples, 2 * RATE),
        ("two.wav", np.stack([samples, -samples], 1), RATE),
        ("fine.wav", samples + 0.001, RATE),
        ("same.flac", samples, RATE),
        (".deep/hidden.wav", samples, RATE),
    ):
        soundfile.write(tmp_path / "more" / name, values, rate)
    out = done(tmp_path, "compress", "rnn", "path=more", "out=more.arm")
    lost = "(one channel of 8,000 Hz, 256 levels), and come back so"
    assert f"3 of 4 sounds were changed to what the model knows {lost}" in out
    assert "in more, left out are hidden files: .deep/hidden.wav" in out
    (tmp_path / "no.wav").write_bytes(b"RIFF")
    error = armodels(tmp_path, "compress", "rnn", "path=no.wav", "out=no.arm").error
    assert "no.wav" in error
    assert not (tmp_path / "no.arm").exists()


@pytest.mark.slow
def test_own_music_comes_back(tmp_path):
    """Frame for frame; a step writes 88 values there."""
    for i in range(10):
        save(tmp_path / "tunes" / f"{i}.mid", tune(i))
    sizes = ("model=frames", "model.hidden_size=6", "model.context_size=3", "model.inner_size=5")
    done(tmp_path, "train", "data=music", "data.path=tunes", "data.length=16", *sizes, *STEPS,
         "out=frames")  # fmt: skip
    for length in (4, 6):
        save(tmp_path / "mine" / f"{length}.mid", tune(length, length))
    found = back(tmp_path, "frames", "mine")
    for length in (4, 6):
        frames, _ = read_midi((found / f"{length}.mid").read_bytes(), QUARTERED)
        assert np.array_equal(frames, tune(length, length))


@pytest.mark.slow
@pytest.mark.parametrize("keys", [(), ("adapt=true",)])
def test_a_blend_gives_back_a_text(keys, tmp_path):
    train(tmp_path, "blend")
    text = tmp_path / "mine.txt"
    text.write_bytes(b"to be or not to be that is whether it is nobler to be not" * 3)
    found = back(tmp_path, "blend", "mine.txt", *keys)
    assert (found / "mine.txt").read_bytes() == text.read_bytes()
