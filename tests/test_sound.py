"""Samples as levels, and files of sound of every kind as samples."""

import io
import sys

import numpy as np
import pytest

from armodels.data.sound import read_clip, resample
from armodels.waveform import ENCODINGS, MU, Waveform, write_wav

RATE = 8000
NOISE = np.random.RandomState(0).randint(-(2**15), 2**15, 1000).astype(np.int16)


@pytest.fixture
def sf():
    return pytest.importorskip("soundfile", reason="needs soundfile: pip install '.[audio]'")


def contents(sf, data, rate=RATE, kind="WAV", subtype=None) -> bytes:
    file = io.BytesIO()
    sf.write(file, data, rate, format=kind, subtype=subtype)
    return file.getvalue()


# Levels


def encode(samples, encoding):
    return Waveform.of(RATE, encoding).encoded(samples)


def decode(levels, encoding):
    return Waveform.of(RATE, encoding).decoded(levels)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_level_comes_back(encoding):
    levels = np.arange(ENCODINGS[encoding][1])
    samples = decode(levels, encoding)
    assert samples.dtype == np.float32
    assert np.abs(samples).max() <= 1
    assert (np.diff(samples) > 0).all()
    again = encode(samples, encoding)
    assert np.array_equal(again, levels)
    assert again.dtype == (np.uint8 if len(levels) == 256 else np.int32)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_ends_and_silence(encoding):
    top = ENCODINGS[encoding][1] - 1
    assert encode(np.array([-1, 0, 1]), encoding).tolist() == [0, (top + 1) // 2, top]


def test_mu_law_by_hand():
    # f(1/255) = ln 2 / ln 256 = 1/8, and f((2^(8 c) - 1) / 255) = c.
    assert encode(np.array([1 / MU, -1 / MU]), "mu_law").tolist() == [143, 112]
    assert decode(np.array([0, 85, 170, 255]), "mu_law") == pytest.approx(
        [-1, -(256 ** (1 / 3) - 1) / 255, (256 ** (1 / 3) - 1) / 255, 1], abs=1e-7
    )


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_sample_becomes_the_nearest_level(encoding):
    """In the scale of the levels, no sample is further than half a level from its own."""
    x = np.random.RandomState(1).uniform(-1, 0.99, 5000)

    def scale(x):
        x = np.float64(x)
        return np.sign(x) * np.log1p(MU * np.abs(x)) if encoding == "mu_law" else x

    step = 2 * scale(1) / (ENCODINGS[encoding][1] - (encoding == "mu_law"))
    error = scale(decode(encode(x, encoding), encoding)) - scale(x)
    assert np.abs(error).max() <= step / 2 * (1 + 1e-5)


@pytest.mark.parametrize("bad", [[1.001], [-1.001], [float("nan")], [0, float("inf")]])
def test_what_is_no_sample_is_refused(bad):
    with pytest.raises(ValueError, match=r"must lie in \[-1, 1\], and be no NaN"):
        encode(np.array(bad), "mu_law")


@pytest.mark.parametrize("bad", [[256], [-1], [0.0]])
def test_what_is_no_level_is_refused(bad):
    with pytest.raises(ValueError, match="has the levels 0 to 255, as integers"):
        decode(np.array(bad), "linear8")


# Files


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [
        *(("WAV", one) for one in ("PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")),
        *(("FLAC", "PCM_16"), ("FLAC", "PCM_24"), ("AIFF", "PCM_16"), ("W64", "PCM_16")),
    ],
)
def test_a_file_of_sixteen_bits_keeps_every_sample(sf, kind, subtype):
    data = NOISE / 2**15 if subtype in ("FLOAT", "DOUBLE") else NOISE
    read = read_clip(contents(sf, data, kind=kind, subtype=subtype), RATE)
    assert read.dtype == np.float32
    assert np.array_equal(encode(read, "linear16"), NOISE.astype(np.int32) + 2**15)


def test_a_file_of_eight_bits_holds_the_levels_of_linear8(sf):
    levels = np.arange(256)
    file = contents(sf, ((levels - 128) * 256).astype(np.int16), subtype="PCM_U8")
    assert file.endswith(bytes(levels.tolist()))
    assert np.array_equal(encode(read_clip(file, RATE), "linear8"), levels)


def test_more_than_sixteen_bits_are_read(sf):
    data = np.array([1 << 8, -(1 << 8), (1 << 31) - (1 << 8)], np.int32)
    for subtype in ("PCM_24", "PCM_32"):
        read = read_clip(contents(sf, data, subtype=subtype), RATE)
        assert read.tolist() == [2**-23, -(2**-23), 1 - 2**-23]


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_ogg_is_read(sf, subtype):
    if subtype not in sf.available_subtypes("OGG"):
        pytest.skip("this libsndfile cannot write it")
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    read = read_clip(contents(sf, tone, kind="OGG", subtype=subtype), RATE)
    assert np.abs(read[1000:7000] - tone[1000:7000]).max() < 0.15  # it is lossy


def test_channels_are_mixed_down(sf):
    x = NOISE / 2**15
    for channels, expected in (((x, 0 * x), x / 2), ((x, -x), 0 * x), ((x, x, -x), x / 3)):
        file = contents(sf, np.stack(channels, 1), subtype="DOUBLE")
        assert read_clip(file, RATE) == pytest.approx(expected, abs=1e-7)


def test_long_files_are_read_in_blocks(sf, monkeypatch):
    monkeypatch.setattr("armodels.data.sound._BLOCK", 300)
    assert len(read_clip(contents(sf, NOISE), RATE)) == len(NOISE)
    monkeypatch.setattr("armodels.data.sound.MAX_SAMPLES", 999)
    with pytest.raises(ValueError, match="more than 999 samples a channel; cut it into several"):
        read_clip(contents(sf, NOISE), RATE)


@pytest.mark.parametrize("rate", [44_100, 16_000, 6000])
def test_another_rate_is_the_same_tone(sf, rate):
    def tone(at):
        return 0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * at // 5) / at)

    read = read_clip(contents(sf, tone(rate), rate, subtype="FLOAT"), RATE)
    assert len(read) == 2 * RATE // 5
    assert np.abs(read - tone(RATE))[100:-100].max() < 2e-3


def test_what_a_lower_rate_cannot_show_is_filtered():
    high = np.sin(2 * np.pi * 7000 * np.arange(16_000) / 16_000).astype(np.float32)
    assert np.abs(resample(high, 16_000, 8000)[100:-100]).max() < 1e-2


def test_overshoots_are_cut_off(sf):
    file = contents(sf, np.array([0.5, 1.5, -1.2]), subtype="FLOAT")
    assert read_clip(file, RATE).tolist() == [0.5, 1, -1]


def changed(file: bytes, start: int, by: bytes) -> bytes:
    return file[:start] + by + file[start + len(by) :]


TROUBLES = {
    "empty": (lambda sf: b"", "Format not recognised"),
    "no-sound": (lambda sf: b"not sound" * 99, "Format not recognised"),
    "cut-in-its-header": (lambda sf: contents(sf, NOISE)[:20], "Malformed 'fmt ' chunk"),
    "no-data": (lambda sf: contents(sf, NOISE)[:40], "No 'data' chunk marker"),
    "cut": (
        lambda sf: contents(sf, NOISE)[:1044],
        "it is cut off: its header states 2,000 bytes of samples, 1,000 are there",
    ),
    "cut-aiff": (lambda sf: contents(sf, NOISE, kind="AIFF")[:900], "it is cut off"),
    "cut-flac": (lambda sf: contents(sf, NOISE, kind="FLAC")[:900], "flac decoder lost sync"),
    "no-channels": (lambda sf: changed(contents(sf, NOISE), 22, b"\0\0"), "Channel count is zero"),
    "too-high-a-rate": (
        lambda sf: changed(contents(sf, NOISE), 24, b"\xff\xff\xff\x7f"),
        "its header states 2,147,483,647 samples a second",
    ),
    "no-samples": (lambda sf: contents(sf, NOISE[:0]), "it holds no samples"),
    "nan": (
        lambda sf: contents(sf, np.array([0, 1, np.nan]), subtype="FLOAT"),
        "sample 2 is nan, which is no number",
    ),
    "infinite": (
        lambda sf: contents(sf, np.array([0, -np.inf]), subtype="DOUBLE"),
        "sample 1 is -inf, which is no number",
    ),
    "another-scale": (
        lambda sf: contents(sf, NOISE.astype(np.float64), subtype="FLOAT"),
        r"samples go up to 3.\d+e\+04, but those of a float file lie in \[-1, 1\]; divide them",
    ),
}


@pytest.mark.parametrize("name", TROUBLES)
def test_what_cannot_be_read_is_one_sentence(sf, name, tmp_path):
    make, told = TROUBLES[name]
    path = tmp_path / "a.wav"
    path.write_bytes(make(sf))
    with pytest.raises(ValueError, match=told):
        read_clip(make(sf), RATE)
    with pytest.raises(ValueError, match=f"^.*a.wav cannot be read as sound: .*{told}") as error:
        read_clip(path, RATE)
    assert "\n" not in str(error.value)
    assert " at 0x" not in str(error.value)


def test_a_recorder_that_streams_states_no_length(sf):
    file = contents(sf, NOISE)
    for size in (b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f"):
        assert len(read_clip(changed(file, 40, size), RATE)) == len(NOISE)


def test_wrong_arguments(sf, tmp_path, monkeypatch):
    for rate in (0, -8000, 10**9):
        with pytest.raises(ValueError, match=f"rate is {rate}; it must be from 1 to 768,000"):
            read_clip(contents(sf, NOISE), rate)
        with pytest.raises(ValueError, match=f"rate is {rate}; it must be from 1 to 768,000"):
            write_wav(tmp_path / "a.wav", np.zeros(3), rate)
    with pytest.raises(ValueError, match=r"of samples \(T,\), not of shape \(1, 3\)"):
        write_wav(tmp_path / "a.wav", np.zeros((1, 3)), RATE)
    with pytest.raises(ValueError, match="be no NaN"):
        write_wav(tmp_path / "a.wav", np.full(3, np.nan), RATE)
    with pytest.raises(FileNotFoundError):
        read_clip(tmp_path / "a.wav", RATE)
    monkeypatch.setattr("armodels.data.sound.MAX_BYTES", 9)
    (tmp_path / "b.wav").write_bytes(contents(sf, NOISE))
    with pytest.raises(
        ValueError, match=r"b.wav has more than 9 bytes; cut it into several files"
    ):
        read_clip(tmp_path / "b.wav", RATE)


def test_what_to_install_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'armodels\[audio\]'"):
        read_clip(b"", RATE)


# Writing


def test_a_wav_keeps_every_level(sf, tmp_path):
    levels = np.arange(2**16)
    write_wav(tmp_path / "a.wav", decode(levels, "linear16"), 11_025)
    assert np.array_equal(encode(read_clip(tmp_path / "a.wav", 11_025), "linear16"), levels)
    found = sf.info(tmp_path / "a.wav")
    assert (found.samplerate, found.channels, found.subtype) == (11_025, 1, "PCM_16")
    assert found.frames == 2**16
    file = io.BytesIO()
    write_wav(file, decode(levels, "linear16"), 11_025)
    assert file.getvalue() == (tmp_path / "a.wav").read_bytes()


def test_a_wav_needs_no_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    write_wav(str(tmp_path / "a.wav"), np.array([-1, 0, 0.5, 1]), RATE)
    written = np.frombuffer((tmp_path / "a.wav").read_bytes()[44:], "<i2")
    assert written.tolist() == [-32768, 0, 16384, 32767]
