"""Sources of sound: windows of clips, splits by file, spoken digits, sines of known entropy."""

import csv
import io
import json
import math
import os
import shlex
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from command import QUICK, armodels, done

from armodels.data.audio import FSDD, SPEAKERS, Audio, parts_of
from armodels.data.base import PARTS
from armodels.data.clips import windows
from armodels.data.images import Shares
from armodels.data.sine import Sine
from armodels.waveform import Waveform, write_wav

REAL = Path(os.environ.get("ARMODELS_DATA", "")) / "audio/fsdd.zip"
RATE = 8000

needs_soundfile = pytest.mark.usefixtures("sf")


@pytest.fixture
def sf():
    return pytest.importorskip("soundfile", reason="needs soundfile: pip install '.[audio]'")


def wav(levels, rate=RATE) -> bytes:
    """A file whose levels of ``linear8`` are those."""
    file = io.BytesIO()
    write_wav(file, Waveform.of(rate, "linear8").decoded(np.asarray(levels)), rate)
    return file.getvalue()


def clip(number: int, length: int = 25) -> np.ndarray:
    """Levels of clip ``number``: no two clips share any."""
    return number * 25 + np.arange(length) % 25


@pytest.fixture
def folder(tmp_path):
    """Ten clips of 25 samples, three folders deep."""
    path = tmp_path / "my sounds"
    (path / "deep/er").mkdir(parents=True)
    for i in range(10):
        (path / ("deep/er" if i % 3 else "") / f"clip{i}.wav").write_bytes(wav(clip(i)))
    return path


def audio(path, **keys) -> Audio:
    return Audio(path, **{"rate": RATE, "encoding": "linear8", "length": 10} | keys)


def numbers(clips) -> dict[str, list[int]]:
    """Which of ``clip`` each clip is."""
    return {part: sorted(int(one[0]) // 25 for one in clips[part]) for part in PARTS}


# Windows


def test_windows_follow_one_another():
    cut = windows(torch.arange(25), 10)
    assert cut.tolist() == [list(range(10)), list(range(10, 20))]
    assert windows(torch.arange(9), 10).shape == (0, 10)
    assert windows(torch.arange(10), 10).shape == (1, 10)


@needs_soundfile
def test_splits_hold_the_windows_of_their_own_clips(folder):
    source = audio(folder)
    clips, splits = source.clips(), source.load()
    assert [len(clips[part]) for part in PARTS] == [8, 1, 1]
    assert sorted(sum(numbers(clips).values(), [])) == list(range(10))
    assert all(one.shape == (25,) and one.dtype == torch.uint8 for one in clips["train"])
    for part in PARTS:
        expected = torch.cat([windows(one, 10) for one in clips[part]]).tolist()
        assert sorted(splits.split(part).tolist()) == sorted(expected)
        assert len(expected) == 2 * len(clips[part])
    spec = splits.spec
    assert (spec.kind, spec.shape, spec.levels) == ("sequence", (10,), 256)
    # Neighbours are apart: the first rows initialize models.
    first = splits.train[:4, 0] // 25
    assert len(first.unique()) > 2


@needs_soundfile
def test_a_zip_and_a_folder_are_one(folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for i, path in enumerate(sorted(folder.rglob("*.wav"))):
            file.write(path, f"x/{9 - i}.WAV")  # Names count for nothing.
    one, two = audio(folder).load(), audio(tmp_path / "a.zip").load()
    assert one.spec.checksum == two.spec.checksum != ""
    assert all(torch.equal(one.split(part), two.split(part)) for part in PARTS)


@needs_soundfile
def test_the_seed_draws_the_splits(folder):
    found = [numbers(audio(folder, split_seed=seed).clips()) for seed in range(6)]
    assert found[0] == numbers(audio(folder).clips())
    assert len({tuple(one["test"]) for one in found}) > 2
    assert len({audio(folder, split_seed=seed).load().spec.checksum for seed in range(3)}) == 3


def test_shares_are_those_of_different_files():
    digests = [bytes([i]) for i in range(100)]
    part = parts_of(digests * 2, Shares(0.2, 0.1), 0)
    assert [list(part.values()).count(name) for name in PARTS] == [70, 20, 10]
    assert part == parts_of(digests[::-1], Shares(0.2, 0.1), 0)
    assert part != parts_of(digests, Shares(0.2, 0.1), 1)
    assert sorted(parts_of(digests[:3], Shares(0.1, 0.1), 0).values()) == sorted(PARTS)
    assert parts_of(digests[:2] * 5, Shares(0.1, 0.1), 0) is None


@needs_soundfile
def test_equal_files_are_in_one_split(folder):
    for path in list(folder.rglob("*.wav")):
        shutil.copy(path, path.with_name(f"copy of {path.name}"))
    found = numbers(audio(folder).clips())
    assert sum(map(len, found.values())) == 20
    assert len(set(found["test"])) == 1
    assert not set(found["train"]) & {*found["test"], *found["valid"]}


@needs_soundfile
def test_rate_and_encoding_decide_on_the_levels(folder):
    half = audio(folder, rate=RATE // 2).clips()
    assert all(len(one) == 13 for part in PARTS for one in half[part])
    fine = audio(folder, encoding="linear16").load()
    assert (fine.train.dtype, fine.spec.levels) == (torch.int32, 65_536)
    plain = audio(folder).load()
    assert torch.equal((fine.test / 256).int(), plain.test.int())


def test_names_say_what_a_window_is():
    names = [
        Audio("my sounds").spec.name,
        Audio("my sounds", rate=8000).spec.name,
        Audio("b", name="birds", encoding="linear16", length=99, valid=0.2).spec.name,
        Audio("b", split_seed=3).spec.name,
        FSDD().spec.name,
        FSDD("linear8", 512).spec.name,
        Sine().spec.name,
        Sine(64, 4, [100, 200], 3, 0.5, 1000).spec.name,
    ]
    assert names == [
        "audio-my_sounds-16000-mu_law-1024",
        "audio-my_sounds-8000-mu_law-1024",
        "birds-16000-linear16-99-split0.2-0.1",
        "audio-b-16000-mu_law-1024-seed3",
        "fsdd-mu_law-1024",
        "fsdd-linear8-512",
        "sine-L16-256",
        "sine-L4-64-hz100-200-phases3-noise0.5-rate1000",
    ]


# What cannot be


@needs_soundfile
def test_other_files_are_told(folder, capsys):
    (folder / "notes.txt").write_text("x")
    (folder / ".hidden.wav").write_text("x")
    assert len(audio(folder).load().train) == 16
    assert (
        "left out are files that are no sound of a known kind: 1 .txt" in capsys.readouterr().out
    )


@needs_soundfile
def test_a_file_that_is_no_sound_is_refused_or_left_out(folder, capsys):
    (folder / "bad.wav").write_text("no sound")
    (folder / "cut.wav").write_bytes(wav(clip(0))[:60])
    told = (
        r"^a file of .*my sounds cannot be used \(bad.wav: Format not recognised\); mend or "
        r"remove it, or leave such files out with data.skip_corrupt=true$"
    )
    with pytest.raises(ValueError, match=told):
        audio(folder).load()
    assert len(audio(folder, skip_corrupt=True).load().train) == 16
    shown = capsys.readouterr()
    assert "2 corrupt files of" in shown.out + shown.err
    assert "cut.wav: it is cut off" in shown.out + shown.err
    for path in folder.rglob("clip*"):
        path.write_text("no sound, either")
    with pytest.raises(ValueError, match=r"^no file of .* can be read \(bad.wav: Format not"):
        audio(folder, skip_corrupt=True).load()


@needs_soundfile
def test_short_clips_are_left_out_and_told(folder, capsys):
    (folder / "short.wav").write_bytes(wav(clip(0, 9)))
    source = audio(folder, split_seed=1)  # which has it in train
    assert 9 in map(len, source.clips()["train"])
    assert sum(len(source.load().split(part)) for part in PARTS) == 20
    assert "1 of 11 clips is shorter than data.length=10 and left out" in capsys.readouterr().out
    told = (
        "^no clip of train is as long as data.length=26 samples, the longest has 25; choose a "
        "smaller data.length$"
    )
    with pytest.raises(ValueError, match=told):
        audio(folder, length=26).load()


@needs_soundfile
def test_what_holds_no_clips(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="^data.path is nowhere, which does not exist; na"):
        audio("nowhere").load()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no sound; looked for files of .aif .* .wav"):
        audio(tmp_path / "empty").load()
    (tmp_path / "empty/a.png").write_text("x")
    with pytest.raises(ValueError, match=r"holds no sound \(files that are no sound .*1 .png\)"):
        audio(tmp_path / "empty").load()
    (tmp_path / "b.txt").write_text("x")
    with pytest.raises(ValueError, match=r"b.txt, which is no folder or zip of sound; put"):
        audio(tmp_path / "b.txt").load()
    (tmp_path / "c.zip").write_text("x")
    with pytest.raises(ValueError, match=r"c.zip is truncated or corrupted .* copy it again"):
        audio(tmp_path / "c.zip").load()
    for path in list(folder.rglob("*.wav"))[2:]:
        path.unlink()
    with pytest.raises(ValueError, match="holds 2 different files, which is too few for train, v"):
        audio(folder).load()


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"rate": 0}, "^rate is 0; it must be from 1 to 768000"),
        ({"rate": -1}, "^rate is -1; it must be from 1 to 768000"),
        ({"length": 0}, "^length is 0; it must be at least 1"),
        ({"length": -5}, "^length is -5; it must be at least 1"),
        ({"encoding": "alaw"}, "^encoding is 'alaw'; choose mu_law, linear8 or linear16"),
        ({"name": "a/b"}, "^data.name is 'a/b'; it is no path"),
        ({"valid": 0.5, "test": 0.5}, "leave something to train on"),
    ],
)
def test_wrong_settings_of_audio(keys, told):
    with pytest.raises(ValueError, match=told):
        Audio("x", **keys)


# Spoken digits


@pytest.fixture
def fsdd(tmp_path, monkeypatch):
    """A root with nine takes of each digit; a clip's levels are its digit, speaker and take."""
    monkeypatch.setattr("armodels.data.audio.TAKES", range(9))
    (tmp_path / "audio").mkdir()
    with zipfile.ZipFile(tmp_path / "audio/fsdd.zip", "w") as file:
        file.writestr("free-spoken-digit-dataset/README.md", "x")
        for digit in range(10):
            for number, speaker in enumerate(SPEAKERS):
                for take in range(9):
                    name = f"free-spoken-digit-dataset/recordings/{digit}_{speaker}_{take}.wav"
                    file.writestr(name, wav([digit, number, take] * 2 + [99]))
    return tmp_path


@needs_soundfile
def test_the_index_of_a_spoken_digit_is_its_split(fsdd):
    source = FSDD("linear8", length=3, root=str(fsdd))
    splits = source.load()
    for part, takes in (("train", [8]), ("valid", [5, 6, 7]), ("test", [0, 1, 2, 3, 4])):
        rows = splits.split(part)
        assert sorted(rows[:, 2].unique().tolist()) == takes
        assert len(rows) == 2 * 60 * len(takes)
        for place, name in enumerate(("digit", "speaker")):
            context = next(one for one in source.spec.contexts if one.name == name)
            assert context.num_classes == (10, 6)[place]
            examples = splits.examples(part, context)
            assert torch.equal(examples[:].context, rows[:, place])
    assert [len(source.clips()[part]) for part in PARTS] == [60, 180, 300]


@pytest.mark.slow
@needs_soundfile
def test_clips_are_scored_given_their_own_digit(fsdd):
    """A row of a split, of a file, and what `eval` says are one number."""
    data = ("data=fsdd", "data.encoding=linear8", "data.length=3", f"data.root={fsdd}")
    model = ("model=rnn", "model.hidden_size=8", "model.context=digit", "optimizer.lr=0.1")
    told = done(fsdd, "train", *data, *model, "trainer.max_steps=9", *QUICK, "out=run")
    (line,) = [line for line in told.splitlines() if "armodels complete " in line]
    assert "label=0" in line
    assert "wrote" in done(fsdd, *shlex.split(line)[1:])
    done(fsdd, "score", "run", "by=piece", "out=rows.csv")
    rows = list(csv.DictReader((fsdd / "rows.csv").read_text().splitlines()))
    each = [float(row["nats_per_symbol"]) for row in rows]
    said = json.loads((fsdd / "run/metrics.json").read_text())["test"]["nats_per_symbol"]
    assert sum(each) / 300 == pytest.approx(said, abs=1e-6)
    clip = fsdd / "own/clip.wav"
    clip.parent.mkdir()
    clip.write_bytes(wav([7, 3, 2] * 2 + [99]))
    found = {}
    for label in (7, 8):
        done(fsdd, "score", "run", "file=own", f"label={label}", "out=row.csv")
        (row,) = csv.DictReader((fsdd / "row.csv").read_text().splitlines())
        found[label] = float(row["nats_per_symbol"])
    clips = FSDD("linear8", 3, str(fsdd)).load().pieces["test"]
    place = next(i for i, one in enumerate(clips) if one[:3].tolist() == [7, 3, 2])
    assert found[7] == pytest.approx(each[place], abs=1e-6)
    assert abs(found[8] - found[7]) > 1e-3
    told = "the model is conditioned on digit; give the file's: label=0 to label=9"
    assert armodels(fsdd, "score", "run", "file=own", "out=none.csv").error == told
    told = "label=7 goes with file=FILE, not with a split; leave it out"
    assert armodels(fsdd, "score", "run", "label=7", "out=none.csv").error == told
    assert not (fsdd / "none.csv").exists()
    told = "Recurrent with categorical head is conditioned on digit, and cannot learn while it is"
    assert armodels(fsdd, "eval", "run", "adapt=true").error.startswith(told)


@needs_soundfile
def test_other_recordings_are_refused(fsdd):
    path = fsdd / "audio/fsdd.zip"
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("recordings/0_nobody_0.wav", wav([1]))
    with pytest.raises(ValueError, match=r"fsdd.zip also holds 0_nobody_0.wav; it should hold th"):
        FSDD(root=str(fsdd)).load()
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("recordings/0_george_0.wav", wav([1]))
    with pytest.raises(ValueError, match=r"fsdd.zip lacks 0_george_1.wav; .*: fetch or copy it a"):
        FSDD(root=str(fsdd)).load()
    path.unlink()
    with pytest.raises(
        FileNotFoundError, match="fsdd.zip not found: .*free-spoken-digit-dataset into .*audio$"
    ):
        FSDD(root=str(fsdd)).load()


@pytest.mark.slow
@needs_soundfile
@pytest.mark.skipif(not REAL.exists(), reason="needs audio/fsdd.zip in $ARMODELS_DATA")
def test_real_spoken_digits():
    source = FSDD()
    splits, clips = source.load(), source.clips()
    assert [len(clips[part]) for part in PARTS] == [2520, 180, 300]
    assert [len(splits.split(part)) for part in PARTS] == [7375, 529, 860]
    whole = {part: torch.cat(clips[part]).long() for part in PARTS}
    counts = torch.cat([whole["train"], whole["valid"]]).bincount(minlength=256).double()
    bits = -(counts / counts.sum()).log2()[whole["test"]].mean()
    assert float(bits) == pytest.approx(7.18, abs=0.005)


# Sines


def every(length: int, levels: int) -> torch.Tensor:
    digits = torch.arange(levels, dtype=torch.uint8)
    return torch.cartesian_prod(*[digits] * length).view(-1, length)


def test_sines_by_hand():
    found = Sine(5, frequencies=[2000, 4000], num_phases=4).sines()
    assert found.tolist() == [
        [8, 14, 8, 1, 8],
        [14, 8, 1, 8, 14],
        [8, 1, 8, 14, 8],
        [1, 8, 14, 8, 1],
        [8, 8, 8, 8, 8],
        [14, 1, 14, 1, 14],
        [8, 8, 8, 8, 8],
        [1, 14, 1, 14, 1],
    ]


def test_sines_leave_room_for_noise():
    for levels in (4, 5, 256):
        found = Sine(levels=levels, num_phases=64).sines()
        assert (int(found.min()), int(found.max())) == (1, levels - 2)


@pytest.mark.parametrize(
    ("levels", "keys"),
    [
        (4, {"frequencies": [900, 2000], "num_phases": 3, "noise": 0.3}),
        (5, {"frequencies": [4000], "num_phases": 2, "noise": 0.9}),
        (4, {"frequencies": [700], "num_phases": 5, "noise": 0.0}),
    ],
)
def test_sines_are_one_distribution_and_draws_follow_it(levels, keys):
    num = 20_000
    source = Sine(4, levels, num_train=9, num_valid=9, num_test=num, **keys)
    splits = source.load()
    x = every(4, levels)
    log_prob = splits.true_log_prob(x)
    assert float(log_prob.exp().sum()) == pytest.approx(1, abs=1e-12)

    place = levels ** torch.arange(3, -1, -1)
    counts = (splits.test.long() * place).sum(1).bincount(minlength=len(x)).double()
    expected = num * log_prob.exp()
    assert not counts[expected == 0].any()
    often = expected > 5
    chi2 = float(((counts - expected) ** 2 / expected)[often].sum())
    freedom = int(often.sum())
    assert abs(chi2 - freedom) < 4.5 * math.sqrt(2 * freedom) + 2

    # The exact entropy, and its estimate by the test split that a run reports its gap to.
    entropy = float(-torch.special.xlogy(log_prob.exp(), log_prob.exp()).sum())
    on_test = splits.true_log_prob(splits.test)
    error = float(on_test.std()) / math.sqrt(num)
    assert -float(on_test.mean()) == pytest.approx(entropy, abs=4.5 * error + 1e-9)


def test_entropy_of_sines_lies_between_its_bounds():
    """H(noise) T <= H(x) <= H(noise) T + log(F P)."""
    splits = Sine(num_train=9, num_valid=9, num_test=500).load()
    entropy = -float(splits.true_log_prob(splits.test).mean())
    noise = 256 * -(0.8 * math.log(0.8) + 0.2 * math.log(0.1))
    assert noise + 0.5 * math.log(48) < entropy < noise + math.log(48) + 2


def test_log_prob_of_sines_by_hand():
    log_prob = Sine(2, 16, [2000], 4, noise=0.2, num_train=9).load().true_log_prob
    x = torch.tensor([[8, 14], [9, 14], [9, 13], [8, 8], [8, 11]], dtype=torch.uint8)
    expected = [0.8 * 0.8 / 4, 0.1 * 0.8 / 4, 0.1 * 0.1 / 4, 0, 0]
    assert log_prob(x).exp().tolist() == pytest.approx(expected, abs=1e-15)
    with pytest.raises(ValueError, match="levels 0..15, got values in 8..16"):
        log_prob(torch.tensor([[8, 16]], dtype=torch.uint8))


def test_draws_of_sines():
    small, large = (Sine(num_train=num, num_valid=9, num_test=9).load() for num in (9, 40))
    other = Sine(num_train=9, num_valid=9, num_test=9, seed=1).load()
    assert torch.equal(small.test, large.test)
    assert torch.equal(small.valid, large.valid)
    assert not torch.equal(small.valid, small.test)
    assert not torch.equal(other.test, small.test)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"frequencies": []}, "^data.frequencies is empty; name one at least"),
        ({"frequencies": [9, 9]}, r"^data.frequencies is \[9, 9\]; each may stand there once"),
        (
            {"frequencies": [4001]},
            "^data.frequencies holds 4001 Hz, which 8000 samples a second ca",
        ),
        ({"frequencies": [0]}, "^frequencies is .*each must be at least 1"),
        ({"levels": 3}, "^levels is 3; it must be from 4 to 256"),
        ({"noise": 1.0}, "^noise is 1.0; it must be at least 0 and below 1"),
        ({"rate": 0}, "^rate is 0; it must be from 1 to 768000"),
        ({"length": 0}, "^length is 0; it must be at least 1"),
    ],
)
def test_wrong_settings_of_sine(keys, told):
    with pytest.raises(ValueError, match=told):
        Sine(**keys)
