"""Music from the file to the number and back to a file."""

import csv
import io
import json
import os
import sys
import wave
from dataclasses import replace
from pathlib import Path
from unittest import mock

import mido
import numpy as np
import pytest
import torch
from cases import CASES
from command import QUICK, armodels, done
from scipy import io as scipy_io
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from armodels import heads, orders, pictures, views
from armodels.baselines import Independent
from armodels.checkpoints import restore
from armodels.data.base import PARTS
from armodels.data.midi import read_midi, write_midi
from armodels.data.music import VOICES, Music, Piece, _drawn, _table, read_cells
from armodels.data.rows import Examples
from armodels.density.autoregressive import AutoregressiveModel
from armodels.density.stream import after_prompt, with_length
from armodels.density.walk import walk
from armodels.evaluation import Evaluation, describe, evaluate
from armodels.networks.conv_nade import ConvNADE
from armodels.networks.deep_nade import DeepNADE
from armodels.networks.masked_transformer import MaskedTransformer
from armodels.networks.sigma_gpt import Places, SigmaGPT
from armodels.notes import RATE, Notes, held, played
from armodels.parts import known_part
from armodels.spec import DataSpec
from armodels.waveform import Waveform, wav

ROOT = Path(__file__).resolve().parents[1]
REAL = Path(os.environ.get("ARMODELS_DATA", ""))
needs_real = pytest.mark.skipif(
    not (REAL / "music/JSB_Chorales.mat").exists(), reason="needs music in $ARMODELS_DATA"
)


def tune(seed: int, length: int = 40) -> np.ndarray:
    """(length, 88) of 0 and 1: three notes a frame, each held for two frames."""
    rng = np.random.default_rng(seed)
    frames = np.zeros((length, 88), np.uint8)
    for first in range(0, length, 2):
        frames[first : first + 2, rng.choice(np.arange(20, 60), 3, replace=False)] = 1
    frames[-1, 40] = 1
    return frames


QUARTERED = Notes(per_beat=4)


def save(path: Path, frames: np.ndarray, notes: Notes = QUARTERED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        write_midi(frames.reshape(1, -1), notes, file)
    return path


@pytest.fixture
def tunes(tmp_path) -> Path:
    """A folder of ten MIDI files."""
    for i in range(10):
        save(tmp_path / "tunes" / f"{i}.mid", tune(i))
    return tmp_path / "tunes"


@pytest.mark.parametrize("per_beat", [1, 4, 7])
def test_frames_come_back_from_a_midi_file(per_beat, tmp_path):
    notes, frames = Notes(per_beat=per_beat), tune(0)
    path = save(tmp_path / "a.mid", frames, notes)
    found, outside = read_midi(path.read_bytes(), notes)
    assert (outside, found.dtype) == (0, np.uint8)
    np.testing.assert_array_equal(found, frames)


def midi(*messages: tuple, ticks: int = 480) -> bytes:
    """A file of one track: (type, key, ticks since the message before) each."""
    track = mido.MidiTrack(
        mido.Message(kind, note=key, time=time, channel=9 if key == 38 else 0)
        for kind, key, time in messages
    )
    file = io.BytesIO()
    mido.MidiFile(tracks=[track], ticks_per_beat=ticks).save(file=file)
    return file.getvalue()


def test_notes_go_to_the_nearest_frames():
    """The first begins time; drums and what no piano has are left out; a short note lasts."""
    contents = midi(
        ("note_on", 60, 480),
        ("note_on", 38, 0),
        ("note_on", 64, 50),
        ("note_off", 64, 1),
        ("note_on", 110, 0),
        ("note_off", 60, 189),
        ("note_on", 61, 60),
        ("note_off", 61, 120),
        ("note_on", 63, 0),
    )
    frames, outside = read_midi(contents, Notes(per_beat=4))
    assert outside == 1
    keys = [(np.flatnonzero(frame) + 21).tolist() for frame in frames]
    assert keys == [[60, 64], [60], [61], [61], [63]]


def test_notes_are_held_while_their_key_sounds():
    roll = np.zeros((5, 128), bool)
    roll[[0, 1, 3], 60] = roll[1:, 64] = True
    assert held(roll) == [(0, 2, 60), (1, 5, 64), (3, 4, 60)]


def test_voices_are_parts_of_their_own():
    notes = Notes(lowest=36, size=2, per_beat=4, voices=("upper", "lower"))
    event = np.array([[[1, 5], [1, 0], [0, 6]]])
    upper, lower = notes.parts(event)
    assert [np.flatnonzero(one).tolist() for one in upper] == [[36], [36], []]
    assert [np.flatnonzero(one).tolist() for one in lower] == [[40], [], [41]]
    file = io.BytesIO()
    write_midi(event[None], notes, file)
    found = mido.MidiFile(file=io.BytesIO(file.getvalue()))
    assert [len([m for m in track if m.type == "note_on"]) for track in found.tracks] == [0, 1, 2]


def test_own_files_are_split_whole_and_by_their_notes(tunes):
    source = Music(path=tunes, length=16, resolution=4)
    splits = source.load()
    sizes = {part: len(pieces) for part, pieces in splits.pieces.items()}
    assert sizes == {"train": 8, "valid": 1, "test": 1}
    assert splits.spec.shape == (16 * 88,)
    assert (splits.spec.unit, splits.spec.num_units) == ("frame", 16)
    assert splits.spec == source.spec
    save(tunes / "again" / "x.mid", tune(3))
    again = Music(path=tunes, length=16).load()
    assert {p: len(v) for p, v in again.pieces.items()} != sizes
    for part, pieces in again.pieces.items():
        held_there = {piece.numpy().tobytes() for piece in pieces}
        others = [one for name, more in again.pieces.items() if name != part for one in more]
        assert not held_there & {one.numpy().tobytes() for one in others}
    assert again.spec.checksum != splits.spec.checksum


def test_one_file_is_cut_by_position(tmp_path):
    frames = tune(0, 100)
    path = save(tmp_path / "a.mid", frames)
    pieces = Music(path=path, length=10).load().pieces
    assert [len(pieces[part][0]) for part in pieces] == [80 * 88, 10 * 88, 10 * 88]
    whole = torch.cat([pieces[part][0] for part in pieces])
    np.testing.assert_array_equal(whole.view(-1, 88), frames)


def test_train_windows_lie_inside_pieces_and_begin_them():
    pieces = [Piece("a", torch.arange(1, 10)[:, None]), Piece("b", torch.arange(21, 24)[:, None])]
    frames, table = _table(pieces, 3, False, False)
    assert len(table) == 3 + 1
    drawn = torch.stack(
        [
            _drawn(frames, 3, False, table, torch.Generator().manual_seed(seed))
            for seed in range(60)
        ]
    )
    assert (drawn.diff(dim=2) == 1).all()
    assert {tuple(one) for one in drawn[:, 0].tolist()} == {(1, 2, 3)}
    assert {one[0] for one in drawn[:, 1].tolist()} == {2, 3, 4}
    assert {one[0] for one in drawn[:, 2].tolist()} == {5, 6, 7}
    assert {tuple(one) for one in drawn[:, 3].tolist()} == {(21, 22, 23)}


def test_transposition_moves_keys_as_far_as_there_is_room():
    frames = torch.zeros(4, 88, dtype=torch.uint8)
    frames[:, 2] = frames[:, 50] = 1
    all_frames, table = _table([Piece("a", frames)], 2, False, True)
    assert table[:, 2:].tolist() == [[-2, 6]] * 2
    drawn = torch.cat(
        [_drawn(all_frames, 2, False, table, torch.Generator().manual_seed(i)) for i in range(200)]
    ).view(-1, 2, 88)
    keys = {tuple(frame.nonzero()[:, 0].tolist()) for frame in drawn.flatten(0, 1)}
    assert keys == {(2 + k, 50 + k) for k in range(-2, 7)}
    voices = torch.tensor([[1, 40, 0, 20]] * 4, dtype=torch.uint8)
    all_frames, table = _table([Piece("a", voices)], 2, True, True)
    assert table[:, 2:].tolist() == [[0, 6]] * 2
    drawn = torch.cat(
        [_drawn(all_frames, 2, True, table, torch.Generator().manual_seed(i)) for i in range(200)]
    )
    assert drawn.shape[1:] == (1, 2, 4)
    found = {tuple(one[0, 0].tolist()) for one in drawn}
    assert found == {(1 + k, 40 + k, 0, 20 + k) for k in range(7)}


def test_only_train_is_transposed(tunes):
    plain, moved = (Music(path=tunes, length=16, transpose=t).load() for t in (False, True))
    assert torch.equal(plain.valid[:], moved.valid[:])
    assert torch.equal(plain.test[:], moved.test[:])
    assert not torch.equal(plain.split("train")[:], moved.split("train")[:])
    assert moved.spec.name.endswith("-transposed-16")


def test_numbers_are_those_of_a_frame(tunes):
    splits = Music(path=tunes, length=1).load()
    model = Independent(splits.spec)
    model.initialize([splits.split("train")[:]])
    report = evaluate(model, splits.examples("test")).report(splits.spec)
    frames = splits.test[:].view(-1, 88).double()
    assert report["num_symbols"] == len(frames) == 40
    assert report["nats_per_symbol"] == pytest.approx(report["nats"])
    assert report["bits_per_symbol"] == pytest.approx(report["bits_per_dim"] * 88)
    spec = DataSpec("x", "sequence", (4 * 88,), 2, "probability", notes=Notes())
    found = Evaluation(3, -40.0, 1.0, 4 * 88 * 3, by_piece=-0.1)
    line = describe("test", found.report(spec), spec)
    assert line.startswith("test   10.0000 ± 0.4900 nats/frame   14.4270 ± 0.7069 bits/frame")
    assert line.endswith("(12 frames; the mean of the pieces' means 8.8000 nats)")


def cells(path: Path, **named) -> bytes:
    made = {}
    for name, arrays in named.items():
        made[name] = np.empty((1, len(arrays)), object)
        made[name][0, :] = arrays
    scipy_io.savemat(path, made)
    return path.read_bytes()


def three(**named) -> dict:
    return {name: [tune(0), tune(1)] for name in ("traindata", "validdata", "testdata")} | named


def test_a_mat_file_is_read_as_three_splits(tmp_path):
    path = tmp_path / "own.mat"
    cells(path, **three(testdata=[tune(5).astype(float)]), other=[tune(2)])
    splits = Music(path=path, length=20).load()
    np.testing.assert_array_equal(splits.pieces["test"][0].view(-1, 88), tune(5))
    assert splits.spec.name == "music-own-20"
    assert splits.spec.notes == Notes(per_beat=1)


def test_a_mat_file_that_is_none_of_music_is_refused(tmp_path):
    path = tmp_path / "x.mat"
    lacking = three()
    del lacking["validdata"]
    for named, reason in (
        (lacking, "it has no validdata"),
        (three(testdata=[tune(0)[:, :80]]), r"piece 0 of testdata is \(40, 80\)"),
        (three(traindata=[tune(0), 2 * tune(1)]), "piece 1 of traindata has other values than 0"),
        (three(traindata=[tune(0), tune(1)[:0]]), r"piece 1 of traindata is \(0, 88\)"),
    ):
        contents = cells(path, **named)
        with pytest.raises(ValueError, match=f"^x.mat is no music \\({reason}.*needs the cells"):
            read_cells(contents, "x.mat")
    scipy_io.savemat(path, {name: np.eye(88) for name in three()})
    for contents in (path.read_bytes(), b"", b"MATLAB", cells(path, **three())[:700]):
        with pytest.raises(ValueError, match=r"^x.mat is no music \(.*needs the cells traindata"):
            read_cells(contents, "x.mat")


def test_bad_files_are_refused_in_a_sentence(tunes, tmp_path):
    good = (tunes / "0.mid").read_bytes()
    seconds = good[:12] + (0xE728).to_bytes(2, "big") + good[14:]
    long = midi(("note_on", 60, 0), ("note_off", 60, 2**27))
    for contents, reason in (
        (b"", r"it is no readable MIDI file \(EOFError\)"),
        (b"nonsense is here", "it is no readable MIDI file .MThd not found"),
        (good[:100], r"it is no readable MIDI file \(EOFError\)"),
        (midi(("note_on", 38, 0)), "it has no notes"),
        (midi(), "it has no notes"),
        (seconds, "it counts time in seconds"),
        (long, "it lasts 1,118,481 frames, more than 131,072"),
    ):
        (tunes / "bad.mid").write_bytes(contents)
        advice = "mend or remove it, or leave such files out with data.skip_corrupt=true"
        where = f"^bad.mid of {tunes} cannot be used: {reason}.*{advice}$"
        with pytest.raises(ValueError, match=where):
            Music(path=tunes).load()
        with pytest.raises(ValueError, match=f"^{tunes}/bad.mid cannot be used: {reason}"):
            Music(path=tunes / "bad.mid").load()
        kept = Music(path=tunes, length=16, skip_corrupt=True).load()
        assert sum(map(len, kept.pieces.values())) == 10


def test_what_is_too_short_or_too_few_is_refused(tunes, capsys):
    with pytest.raises(
        ValueError,
        match=r"no piece of train has the data.length=41 frames of a window, the longest, "
        r"\d.mid, 40; choose a smaller data.length",
    ):
        Music(path=tunes, length=41).load()
    save(tunes / "short.mid", tune(90, 7))
    Music(path=tunes, length=16).load()
    assert "1 of 11 pieces, such as short.mid, is shorter than" in capsys.readouterr().out
    for i in range(1, 10):
        (tunes / f"{i}.mid").unlink()
    with pytest.raises(ValueError, match="holds 2 different pieces, which is too few"):
        Music(path=tunes, length=4).load()


def test_options_that_do_not_go_together_are_refused(tunes):
    for keys, sentence in (
        ({"corpus": "jsb", "path": "x"}, "data.corpus and data.path both say what is read"),
        ({"resolution": 4}, "data.resolution is about own files"),
        ({"name": "a", "test": 0.1}, "data.name and data.test are about own files"),
        ({"voices": True}, "data.voices=true needs data.corpus=jsb_16th"),
        ({"path": "x.mat", "test": 0.2}, "a .mat has splits of its own; leave out data.test"),
        ({"path": "x.mat", "skip_corrupt": True}, "leave out data.skip_corrupt"),
    ):
        with pytest.raises(ValueError, match=sentence):
            Music(**keys)
    with pytest.raises(FileNotFoundError, match="which does not exist; name a folder"):
        Music(path=tunes / "nothing").load()
    (tunes / "a.txt").write_text("x")
    with pytest.raises(ValueError, match="is no .mid, .mat, folder or zip"):
        Music(path=tunes / "a.txt").load()
    (tunes / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no MIDI file"):
        Music(path=tunes / "empty").load()


@pytest.mark.skipif(not (ROOT / "scripts").is_dir(), reason="of the tree: scripts/melodies.py")
def test_a_melody_recurs_in_another_key():
    sys.path.append(str(ROOT / "scripts"))
    import melodies

    def sung(*keys: int) -> tuple[int, ...]:
        frames = np.zeros((len(keys), 88), np.uint8)
        frames[np.arange(len(keys)), keys] = 1
        frames[:, 3] = 1  # below the melody
        return melodies.moves(frames)

    assert sung(50, 50, 52, 53, 53, 50) == (2, 1, -3)
    train = [sung(40, 50, 52, 53, 50, 60)]
    test = [sung(20, 22, 22, 23, 20), sung(30, 32, 33, 31)]
    assert [melodies.recurring(test, train, num) for num in (2, 3)] == [2, 1]


@pytest.mark.slow
@needs_real
def test_the_corpora_are_those_of_the_field():
    sizes = {}
    for corpus in ("jsb", "nottingham", "jsb_16th"):
        pieces = Music(corpus, root=str(REAL)).pieces
        sizes[corpus] = [sum(len(one.frames) for one in pieces[part]) for part in pieces]
    assert sizes["jsb"] == [13_807, 4_602, 4_725]
    assert sizes["nottingham"] == [176_561, 45_513, 44_463]
    assert sizes["jsb_16th"] == [55_228, 18_408, 18_900]
    voices = Music("jsb_16th", voices=True, root=str(REAL))
    frames = Music("jsb_16th", root=str(REAL)).pieces["test"][3].frames
    sung = voices.notes.parts(voices.pieces["test"][3].frames.numpy())
    np.testing.assert_array_equal(np.any(sung, 0)[:, 21:109], frames.numpy())


@needs_real
def test_independent_notes_have_the_nats_of_the_field(tmp_path):
    """11.061 nats a test frame, with one more of each level."""
    splits = Music("jsb", length=1, root=str(REAL)).load()
    model = Independent(splits.spec)
    model.initialize([splits.split("train")[:]])
    report = evaluate(model, splits.examples("test")).report(splits.spec)
    assert report["num_symbols"] == 4725
    assert report["nats_per_symbol"] == pytest.approx(11.061, abs=0.0005)


def test_a_note_sounds_at_its_pitch():
    frames = np.zeros((1, 4, 88), np.uint8)
    frames[0, :3, 69 - 21] = 1
    sound = played(frames, Notes(per_beat=2))
    beat = 0.6 * RATE
    assert len(sound) == int(4 * beat) + 1  # with two beats of rest
    spectrum = np.abs(np.fft.rfft(sound[: int(beat)]))
    assert spectrum.argmax() * RATE / int(beat) == pytest.approx(440, abs=2)
    assert np.abs(sound).max() <= 1
    assert not sound[int(1.5 * beat) :].any()
    assert not played(frames * 0, Notes()).any()


def test_a_roll_shows_keys_upwards_and_time_to_the_right():
    spec = DataSpec("x", "sequence", (3 * 88,), 2, "probability", notes=Notes())
    x = torch.zeros(1, 3, 88, dtype=torch.uint8)
    x[0, 0, 40] = x[0, 2, 50] = 1
    picture = pictures.rolls(x.view(1, -1), spec)
    blue = torch.tensor(pictures._VOICES[0], dtype=torch.uint8).view(3, 1, 1)
    rows, columns = (picture == blue).all(0).nonzero().unbind(1)
    left, right = rows[columns < picture.shape[2] // 2], rows[columns > picture.shape[2] // 2]
    assert left.min() > right.max()
    silent = pictures.rolls(torch.zeros(2, 3 * 88, dtype=torch.uint8), spec)
    assert not (silent == blue).all(0).any()


SMALL = ("model=frames", "model.hidden_size=6", "model.context_size=3", "model.inner_size=5")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, str]:
    """A run on ten tunes, and what it printed."""
    folder = tmp_path_factory.mktemp("music")
    for i in range(10):
        save(folder / "tunes" / f"{i}.mid", tune(i))
    keys = ("data=music", "data.path=tunes", "data.length=16", "trainer.batch_size=8")
    args = (*SMALL, *keys, *QUICK, "trainer.max_epochs=2", "samples.num=2", "out=run")
    return folder, done(folder, "train", *args)


def test_music_trains_and_is_evaluated_by_frames(run):
    folder, out = run
    assert "all per frame" in out
    report = json.loads((folder / "run/metrics.json").read_text())["test"]
    assert report["num_symbols"] == 40
    assert report["nats_per_symbol"] == pytest.approx(report["nats"] / 16)
    assert "nats/frame" in done(folder, "eval", "run=run", "split=train")


def test_samples_in_training_are_seen_and_heard(run):
    folder, _ = run
    assert len(list((folder / "run/samples").glob("*.png"))) > 0
    events = EventAccumulator(str(folder / "run"), {"audio": 0})
    events.Reload()
    assert events.Tags()["audio"] == ["view/sound"]
    assert events.Audio("view/sound")[-1].encoded_audio_string[:4] == b"RIFF"


def test_samples_are_written_as_midi_and_as_a_roll(run):
    folder, _ = run
    out = done(folder, "sample", "run=run", "num=3", "out=drawn")
    assert "sample-seed0-t1.mid" in out
    x = np.load(folder / "drawn/sample-seed0-t1.npz")["x"]
    assert x.shape == (3, 16 * 88)
    frames, _ = read_midi((folder / "drawn/sample-seed0-t1.mid").read_bytes(), QUARTERED)
    begins = np.flatnonzero(x[0].reshape(16, 88).any(1))[0]
    np.testing.assert_array_equal(frames[: 16 - begins], x[0].reshape(16, 88)[begins:])
    assert (folder / "drawn/sample-seed0-t1.png").stat().st_size > 0
    done(folder, "sample", "run=run", "num=1", "out=drawn", "length=20")  # frames, not values
    assert np.load(folder / "drawn/sample-seed0-t1-length20.npz")["x"].shape == (1, 20 * 88)


@torch.no_grad()
def test_whole_pieces_are_evaluated_by_both_conventions():
    case = CASES["frames"]
    model = case.build(0)
    pieces = [case.events(9).flatten()[:size] for size in (8, 20, 14)]
    examples = Examples(torch.stack([one[:6] for one in pieces]), pieces=pieces)
    found = evaluate(model, examples).report(case.spec)
    each = torch.cat([with_length(model, len(one)).log_prob(one[None]) for one in pieces])
    frames = torch.tensor([4, 10, 7])
    assert found["num_symbols"] == 21
    assert found["nats_per_symbol"] == pytest.approx(float(-each.sum() / 21))
    by_piece = float((-each / frames).mean())
    assert found["nats_per_symbol_by_piece"] == pytest.approx(by_piece)
    assert abs(by_piece - found["nats_per_symbol"]) > 1e-3


def test_samples_of_before_are_removed(tmp_path):
    spec = DataSpec("s", "sequence", (8,), 256, "probability", waveform=Waveform.of(8, "mu_law"))
    x = torch.zeros(12, 8, dtype=torch.uint8)
    others = ["a-length8.wav", "a-1.npz", "b-01.wav", "a-t0.5.wav", "a.csv", "a-neighbours.png"]
    for name in others:
        (tmp_path / name).touch()
    stem = tmp_path / "a"
    for number in (12, 3, 1, 2):
        written = views.save(views.view(x[:number], spec), stem)
        assert len(written) == number + 1
        assert {*tmp_path.iterdir()} == {*written, *(tmp_path / name for name in others)}
    each = [views.view(x[:1], spec)] * 11
    written = views.save_each(each, stem)
    assert {*tmp_path.iterdir()} == {*written, *(tmp_path / name for name in others)}
    assert [path.name for path in written[:2]] == ["a-00.wav", "a-00.png"]


CHORALE = DataSpec("chorale", "image", (1, 3, 4), 47, "probability", notes=VOICES)


def test_a_chorale_is_read_frame_after_frame():
    """The raster order is that of time, with the four voices of a frame within."""
    steps = orders.make("raster", CHORALE.shape).table[:, 0]
    event = torch.arange(12).view(1, 3, 4)
    assert event.flatten()[steps].tolist() == list(range(12))
    one = np.array([[[1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 3]]])
    sounding = [np.argwhere(part).tolist() for part in VOICES.parts(one)]
    assert sounding == [[[0, 36]], [[1, 37]], [], [[2, 38]]]
    with pytest.raises(ValueError, match="has 4 voices a frame, but shape"):
        replace(CHORALE, shape=(1, 4, 3))
    with pytest.raises(ValueError, match="has 4 values, but the voices"):
        replace(VOICES, voices=("soprano",))
    assert replace(VOICES, voices=False).voices == ()  # as runs from before have it
    with pytest.raises(ValueError, match="voices are True; they must be names"):
        replace(VOICES, voices=True)


@pytest.mark.parametrize(
    ("network", "options"),
    [
        (SigmaGPT, {"num_layers": 1, "hidden_size": 8}),
        (MaskedTransformer, {"num_layers": 1, "hidden_size": 8}),
        (DeepNADE, {"hidden_sizes": [8]}),
        (ConvNADE, {"num_channels": 4, "num_layers": 2, "kernel_size": 3}),
    ],
)
def test_voices_are_drawn_exactly_under_any_order(network, options):
    """Soprano known or bass, all beginnings known: what is known comes first in the order."""
    torch.manual_seed(0)
    head = heads.auto(CHORALE)
    net = network(CHORALE, head.num_params, orders.make("random", CHORALE.shape), **options)
    model = AutoregressiveModel(net, head, resample_orders=not net.any_order)
    x = torch.randint(47, (3, 1, 3, 4), dtype=torch.uint8)
    for known in (["soprano"], ["alto", "bass"], "top"):
        mask = known_part(known, 0.34, CHORALE, 0)
        assert mask.sum() == {"soprano": 3, "alto": 6}.get(known[0], 4)
        found = model.complete(x, mask)
        assert found.method == "exact"
        assert torch.equal(found.values[:, mask], x[:, mask])


def test_places_of_a_chorale_are_voices_and_frames():
    places = Places(CHORALE.shape, 5)
    assert [len(table) for table in places.tables] == [1, 3, 4, 12]
    one, frame, voice, both = places.tables
    found = places(torch.tensor([6]))  # the third voice of the second frame
    torch.testing.assert_close(found[0], one[0] + frame[1] + voice[2] + both[6])


@pytest.fixture(scope="module")
def chorales(tmp_path_factory) -> tuple[Path, dict[str, list[Piece]]]:
    """A run on windows of four frames, and its pieces of 40 frames."""
    folder = tmp_path_factory.mktemp("chorales")
    voices = np.random.default_rng(0).integers(0, 46, (6, 40, 4))
    pieces = [
        Piece(str(i), torch.from_numpy(one.astype(np.uint8))) for i, one in enumerate(voices)
    ]
    parts = dict(zip(PARTS, (pieces[:4], pieces[4:5], pieces[5:]), strict=True))
    with mock.patch.object(Music, "pieces", parts):
        keys = ("data=music", "data.corpus=jsb_16th", "data.voices=true", "data.length=4")
        sizes = ("model=deep_nade", "model.hidden_sizes=[5,5]", "trainer.max_steps=1")
        out = done(folder, "train", *keys, *sizes, *QUICK, "out=run")
        assert "nats/frame" in out
    return folder, parts


def test_a_soprano_is_harmonized(chorales, monkeypatch):
    """What is known stays, and the answers are written as four tracks each."""
    tmp_path, parts = chorales
    monkeypatch.setattr(Music, "pieces", parts)
    test = parts["test"][0].frames.unflatten(0, (-1, 4))  # its windows (10, T, 4)
    for known, *keep in (("known=[soprano]",), ("known=left", "keep=0.25")):
        words = ("num=2", "num_completions=3", known, *keep, f"out={known[6:10]}")
        out = done(tmp_path, "complete", "run=run", *words)
        assert "exact: every answer is a draw" in out
        (path,) = (tmp_path / known[6:10]).glob("complete-*.npz")
        with np.load(path) as file:
            truth, drawn = file["truth"], file["completions"]
        assert drawn.shape == (2, 3, 1, 4, 4)
        assert all((test == torch.from_numpy(one[0])).all((1, 2)).any() for one in truth)
        np.testing.assert_array_equal(drawn[..., 0], truth[:, None, ..., 0].repeat(3, 1))
        assert not np.array_equal(drawn[..., 1:], truth[:, None, ..., 1:].repeat(3, 1))
        for i, answers in enumerate(drawn):
            written = path.with_name(f"{path.stem}-{i}.mid").read_bytes()
            file, notes = io.BytesIO(), restore(tmp_path / "run").spec.notes
            write_midi(answers, notes, file)
            assert written == file.getvalue()
            assert len(mido.MidiFile(file=io.BytesIO(written)).tracks) == 5
            with wave.open(str(path.with_name(f"{path.stem}-{i}.wav"))) as sound:
                assert sound.getnframes() == len(played(answers, notes))
            assert path.with_name(f"{path.stem}-{i}.png").is_file()
    told = armodels(tmp_path, "complete", "run=run", "known=[sopran]").err
    assert "known names 'sopran'; the voices are soprano, alto, tenor, bass" in told


@needs_real
def test_the_soprano_of_a_chorale_is_that_of_its_file(tmp_path):
    """A transformer for any order keeps it bit for bit, from the file to the MIDI."""
    data = ("data=music", "data.corpus=jsb_16th", "data.voices=true", "data.length=8")
    model = ("model=sigma_gpt", "model.num_layers=1", "model.hidden_size=8", "model.num_heads=2")
    orders_ = ("model.order=random", "model.resample_orders=true", "trainer.max_steps=1")
    done(tmp_path, "train", *data, *model, *orders_, *QUICK, "out=run", ARMODELS_DATA=str(REAL))
    words = ("complete", "run=run", "known=[soprano]", "num=3", "num_completions=2", "out=on")
    assert "exact" in done(tmp_path, *words, ARMODELS_DATA=str(REAL))
    sung = json.loads((REAL / "music/Jsb16thSeparated.json").read_text())["test"]
    windows = {
        tuple(one[0] for one in piece[first : first + 8])
        for piece in sung
        for first in range(0, len(piece) - 7, 8)
    }
    for i in range(3):
        track = mido.MidiFile(tmp_path / f"on/complete-soprano-seed0-{i}.mid").tracks[1]
        keys, now = [-1] * 24, 0  # two answers of eight frames, two beats of rest after each
        for message in track:
            if message.type == "note_off":
                first = now // 120
                keys[first : first + message.time // 120] = [message.note] * (message.time // 120)
            now += message.time
        assert tuple(keys[:8]) in windows
        assert keys[:8] == keys[16:]


def notes_of(path: Path, notes: Notes) -> np.ndarray:
    return read_midi(path.read_bytes(), notes, highest=81)[0]


def test_a_tune_goes_on(run):
    """By a model that reads: what is written begins with the prompt, whatever its length."""
    folder, _ = run
    save(folder / "begin.mid", tune(50))
    words = ("num_completions=2", "seed=3", "out=on")
    out = done(folder, "complete", "run=run", "prompt=begin.mid", "length=6", *words)
    frames = notes_of(folder / "on/prompt-begin-seed3-t1-length6.mid", QUARTERED)
    each = 40 + 6 + 8  # with two beats of rest
    np.testing.assert_array_equal(frames[:40], tune(50))
    np.testing.assert_array_equal(frames[each : each + 40], tune(50))
    assert not np.array_equal(frames[40:46], frames[each + 40 : each + 46])
    with wave.open(str(folder / "on/prompt-begin-seed3-t1-length6.wav")) as sound:
        assert sound.getnframes() == int(2 * each * 0.15 * RATE) + 1
    assert (folder / "on/prompt-begin-seed3-t1-length6.png").is_file()
    assert out.count("wrote") == 3
    done(folder, "complete", "run=run", "prompt_file=begin.mid", "out=on")  # a window of 16
    frames = notes_of(folder / "on/prompt-begin-seed0-t1.mid", QUARTERED)
    assert 40 < len(frames) <= 56


@torch.no_grad()
def test_frames_go_on_after_whole_ones():
    case = CASES["frames"]
    model, x = case.build(0), case.events(2).flatten(1)[:, :4]
    steps = after_prompt(model, x[0, :2], 2)  # one frame, then another
    found = []

    def follow(s: int, params: torch.Tensor) -> torch.Tensor:
        found.append(params)
        return x[:, 2 + s, None]

    walk(steps, 2, follow)
    both = torch.cat([x[:1, :2].expand(2, -1), x[:, 2:]], 1)
    wanted = with_length(model, 4).net(both)[:, 2:]
    torch.testing.assert_close(torch.stack(found, 1), wanted)
    steps = after_prompt(model, x[0, :3], 2)
    with pytest.raises(ValueError, match="after whole frames of 2 values, but what was read ends"):
        steps.start(steps.pack(), 2)


def test_a_tune_of_voices_goes_on_and_a_soprano_of_ones_own_is_harmonized(chorales):
    folder, parts = chorales
    whole = parts["test"][0].frames[:6].numpy().copy()
    whole[0] = 1  # a tune begins with its first note
    save(folder / "six.mid", whole, VOICES)
    np.testing.assert_array_equal(notes_of(folder / "six.mid", VOICES), whole)
    words = ("run=run", "prompt=six.mid", "num_completions=2", "length=3", "out=on")
    out = done(folder, "complete", *words)
    assert "heard  the last 1 of 6 frames" in out
    assert "exact" in out
    written = notes_of(folder / "on/prompt-six-seed0-t1-length3.mid", VOICES)
    np.testing.assert_array_equal(written[:6], whole)
    np.testing.assert_array_equal(written[9 + 8 :][:6], whole)
    assert not np.array_equal(written[6:9], written[9 + 8 + 6 :][:3])
    one = replace(VOICES, size=1, voices=("soprano",))
    save(folder / "line.mid", whole[:3, :1], one)
    words = ("run=run", "prompt=line.mid", "known=[soprano]", "num_completions=2", "out=on")
    assert "exact" in done(folder, "complete", *words)
    written = notes_of(folder / "on/prompt-soprano-line-seed0-t1.mid", VOICES)
    np.testing.assert_array_equal(written[:3, 0], whole[:3, 0])
    np.testing.assert_array_equal(written[3 + 8 :][:3, 0], whole[:3, 0])
    assert len(written) == 3 + 8 + 3
    assert (folder / "on/prompt-soprano-line-seed0-t1.png").is_file()
    save(folder / "whole.mid", whole[:3], VOICES)
    done(folder, "complete", "run=run", "prompt=whole.mid", "known=[bass]", "out=on")
    written = notes_of(folder / "on/prompt-bass-whole-seed0-t1.mid", VOICES)
    np.testing.assert_array_equal(written[:, 3], whole[:3, 3])
    two = replace(VOICES, size=2, voices=("bass", "soprano"))
    save(folder / "two.mid", whole[:3, :2], two)
    done(folder, "complete", "run=run", "prompt=two.mid", "known=[bass,soprano]", "out=on")
    written = notes_of(folder / "on/prompt-bass-soprano-two-seed0-t1.mid", VOICES)
    np.testing.assert_array_equal(written[:, [3, 0]], whole[:3, :2])


def of_ticks(*tracks: list[tuple[int, int, int, int]]) -> bytes:
    """A file of notes (tick, ticks, key, channel) at four ticks a beat; drums have channel 9."""
    file = mido.MidiFile(ticks_per_beat=4)
    for notes in tracks:
        events = [(first, 1, key, channel) for first, _, key, channel in notes]
        events += [(first + ticks, 0, key, channel) for first, ticks, key, channel in notes]
        track, now = mido.MidiTrack(), 0
        for at, on, key, channel in sorted(events):
            kind = "note_on" if on else "note_off"
            track.append(mido.Message(kind, note=key, channel=channel, time=at - now))
            now = at
        file.tracks.append(track)
    contents = io.BytesIO()
    file.save(file=contents)
    return contents.getvalue()


def test_voices_are_tracks_or_channels():
    two = Notes(60, 2, 4, voices=("a", "b"))
    upper, lower = [(0, 2, 61, 0), (2, 1, 62, 0)], [(1, 2, 60, 3)]
    drums = [(0, 1, 70, 9)]
    wanted = [[2, 0], [2, 1], [3, 1]]
    for file in (of_ticks([], upper, drums, lower), of_ticks(upper + lower + drums)):
        frames, outside = read_midi(file, two, highest=90)
        assert (frames.tolist(), outside) == (wanted, 0)
    late = of_ticks([(0, 3, 61, 0), (2, 1, 62, 0)], lower)
    with pytest.raises(ValueError, match="its a has the keys 61 and 62 at a time"):
        read_midi(late, two, highest=90)
    short = replace(two, per_beat=1)  # legato of less than half a frame is cut short
    assert read_midi(late, short, highest=90)[0].tolist() == [[3, 1]]
    with pytest.raises(ValueError, match="its notes lie in 1 track or channel, but one is"):
        read_midi(of_ticks(upper), two, highest=90)


@pytest.fixture(scope="module")
def strange(run, chorales):
    """Files that no run can go on with."""
    for folder in (run[0], chorales[0]):
        (folder / "bad.mid").write_bytes(b"MThd" + b"x" * 50)
        (folder / "none.mid").write_bytes(of_ticks([], []))
        (folder / "drums.mid").write_bytes(of_ticks([(0, 4, 40, 9)]))
        (folder / "clip.wav").write_bytes(wav(np.zeros(50, np.float32), 8000))
        (folder / "long.mid").write_bytes(of_ticks([(0, 5, 60, 0)]))
        (folder / "high.mid").write_bytes(of_ticks([(0, 2, 60, 0), (2, 1, 82, 0)]))
        (folder / "two.mid").write_bytes(of_ticks([(0, 3, 62, 0), (0, 3, 60, 0)]))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("prompt=bad.mid", "prompt bad.mid cannot be read as music: it is no readable MIDI file"),
        ("prompt=none.mid", "prompt none.mid cannot be read as music: it has no notes"),
        (
            "prompt_file=drums.mid",
            "prompt_file drums.mid cannot be read as music: it has no notes",
        ),
        (
            "prompt=clip.wav",
            "prompt clip.wav cannot be read as music: it is no readable MIDI file",
        ),
        ("prompt=nothing.mid", "prompt nothing.mid does not exist"),
    ],
)
def test_tunes_that_cannot_be_read_are_refused(run, chorales, strange, words, sentence):
    for folder in (run[0], chorales[0]):
        told = armodels(folder, "complete", "run=run", words)
        assert told.code
        assert sentence in told.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("prompt=long.mid", "its notes lie in 1 track or channel, but one is needed for each"),
        ("prompt=long.mid known=[soprano]", "5 frames, but the model draws windows of 4"),
        ("prompt=high.mid known=[soprano]", "1 of its notes are none of the keys 36 to 81"),
        ("prompt=two.mid known=[bass]", "its bass has the keys 60 and 62 at a time"),
        ("prompt=long.mid known=[tuba]", "known names 'tuba'; the voices are soprano"),
        (
            "prompt=long.mid known=[alto] length=3",
            "length=3 goes with a prompt, not with voices of a prompt",
        ),
        ("prompt=four.mid length=4", "length is 4 frames, but the model draws windows of 4"),
        ("prompt=four.mid top_k=3", "top_k and top_p go with a model that reads"),
    ],
)
def test_tunes_that_do_not_fit_are_refused(chorales, strange, words, sentence):
    folder, _ = chorales
    save(folder / "four.mid", np.full((3, 4), 20, np.uint8), VOICES)
    told = armodels(folder, "complete", "run=run", *words.split())
    assert told.code
    assert sentence in told.err


def test_a_tune_has_the_number_that_eval_has_for_its_piece(run):
    """And a folder a row for each tune; those by windows sum to the tune."""
    folder, _ = run
    (piece,) = Music(path=folder / "tunes", length=16).pieces["test"]
    done(folder, "eval", "run=run", "device=cpu", "out=report.json")
    report = json.loads((folder / "report.json").read_text())
    out = done(folder, "score", "run=run", "file=tunes", "device=cpu", "out=all.csv")
    with open(folder / "all.csv", newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert [*rows] == sorted(f"tunes/{i}.mid" for i in range(10))
    row = rows[f"tunes/{piece.name}"]
    assert int(row["symbols"]) == report["num_symbols"] == 40
    assert float(row["nats_per_symbol"]) == pytest.approx(report["nats_per_symbol"])
    assert float(row["bits_per_dim"]) * 88 == pytest.approx(report["bits_per_symbol"])
    assert "(400 frames, each given all before it)" in out
    words = ("run=run", f"file=tunes/{piece.name}", "by=window", "device=cpu", "out=one.csv")
    told = done(folder, "score", *words)
    assert f"{report['nats_per_symbol']:.4f} nats/frame" in told
    with open(folder / "one.csv", newline="") as file:
        parts = [*csv.DictReader(file)]
    assert [int(one["symbols"]) for one in parts] == [16, 16, 8]
    total = sum(float(one["nats"]) for one in parts)
    assert total == pytest.approx(float(row["nats"]))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("file=bad.mid", "file bad.mid cannot be read as music: it is no readable MIDI file"),
        ("file=none.mid", "file none.mid cannot be read as music: it has no notes"),
        ("file=clip.wav", "file clip.wav cannot be read as music"),
        ("file=nothing.mid", "file nothing.mid does not exist"),
        ("file=tunes/0.mid by=line", "by=line is for texts"),
    ],
)
def test_tunes_that_cannot_be_scored_are_refused(run, strange, words, sentence):
    told = armodels(run[0], "score", "run=run", *words.split(), "out=refused.csv")
    assert sentence in told.error
    assert not (run[0] / "refused.csv").exists()


def test_a_model_of_windows_scores_no_tune(chorales):
    told = armodels(chorales[0], "score", "run=run", "file=six.mid").error
    assert "reads no music of any length; train one that does" in told
