"""Simulated rooms: their geometry and reverberation, resumed and in processes."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
from test_cli import interrupt
from test_data_librimix import contents, modification_times

from speechbrain_peer.cli.__main__ import main
from speechbrain_peer.data.room_simulation import (
    DEVICE_DIAMETER,
    FROM_WALLS,
    PHONES_APART,
    TABLE_RADIUS,
    Plan,
    Settings,
    draw_plan,
    make_rooms,
    simulate,
)
from speechbrain_peer.data.rooms import RoomFolder, direct_taps
from speechbrain_peer.utils.files import DataError

RATE = 8000
# Dry ones, as they are simulated fast.
FEW = Settings(
    n_rooms=20,
    n_talkers=2,
    n_microphones=2,
    layout="mixed",
    rt60=(0.1, 0.12),
    sample_rate=RATE,
    seed=1,
)


@pytest.fixture(scope="session")
def pyroomacoustics():
    """Skips where the extra is not installed."""
    return pytest.importorskip("pyroomacoustics", reason="the extra [rooms] is absent")


@pytest.fixture(scope="session")
def few_rooms(pyroomacoustics, tmp_path_factory):
    """Twenty rooms of two talkers and two microphones; only to read."""
    folder = tmp_path_factory.mktemp("rooms")
    make_rooms(folder, FEW, n_processes=1)
    return folder


def distances(plan):
    """(talkers, microphones), in metres."""
    return np.linalg.norm(plan.talkers[:, None] - plan.microphones, axis=-1)


@pytest.mark.parametrize("n_microphones", [1, 2, 8])
@pytest.mark.parametrize("layout", ["device", "table", "mixed"])
def test_everything_stands_where_it_can(layout, n_microphones):
    settings = Settings(1, 8, n_microphones, layout, (0.1, 0.6), RATE, seed=3)
    drawn = set()
    for number in range(100):
        plan, rt60 = draw_plan(settings, number)
        drawn.add(plan.layout)
        everything = np.concatenate([plan.microphones, plan.talkers])
        assert plan.microphones.shape == (n_microphones, 3)
        assert plan.talkers.shape == (8, 3)
        walls = np.minimum(everything, plan.size - everything)
        assert walls.min() > 0 and walls[n_microphones:].min() >= FROM_WALLS
        assert 0.1 <= rt60 <= 0.6
        assert distances(plan).min() >= 0.5
        gaps = np.linalg.norm(plan.microphones[:, None] - plan.microphones, axis=-1)
        widest = DEVICE_DIAMETER if plan.layout == "device" else 2 * TABLE_RADIUS
        assert gaps.max() <= widest + 1e-9
        if plan.layout == "table" and n_microphones > 1:
            assert gaps[gaps > 0].min() >= PHONES_APART
    assert drawn == ({"device", "table"} if layout == "mixed" else {layout})


def test_a_room_is_a_function_of_the_seed_and_its_number():
    def drawn(seed, number):
        plan, rt60 = draw_plan(FEW._replace(seed=seed, n_rooms=9), number)
        return [rt60, *np.concatenate([plan.size, plan.talkers.ravel()])]

    assert drawn(1, 4) == drawn(1, 4)
    assert len({drawn(seed, number)[0] for seed in (1, 2) for number in (3, 4)}) == 4


def fractional_delay(samples):
    """The delay of a band-limited pulse, in samples, from the slope of its phase."""
    spectrum = np.fft.rfft(samples, 4 * len(samples))
    frequencies = np.linspace(0, np.pi, len(spectrum))
    used = (frequencies > 0.2) & (frequencies < 2.4)
    phase = np.unwrap(np.angle(spectrum[used]))
    return -np.polyfit(frequencies[used], phase, 1)[0]


def test_delays_are_those_of_the_geometry(pyroomacoustics):
    # Farther than the walls are from anything: the direct sound comes alone.
    talkers = np.array([[15, 15, 14.0], [16.1, 14, 15.7], [14, 16.6, 15.2]])
    microphones = np.array([[14.6, 15.3, 15], [14.63, 15.33, 15], [16, 16, 15.5]])
    plan = Plan("table", np.array([30.0, 30, 30]), microphones, talkers)
    responses, _ = simulate(plan, 0.1, RATE)
    geometric = distances(plan) / 343 * RATE
    window = np.hanning(81)
    measured = np.zeros((3, 3))
    for talker, response in enumerate(responses):
        for microphone, tap in enumerate(direct_taps(response)):
            pulse = response[tap - 40 : tap + 41, microphone] * window
            measured[talker, microphone] = tap - 40 + fractional_delay(pulse)
    assert np.abs(np.ptp(measured - geometric)) < 0.01


@pytest.mark.parametrize(
    ("number", "rt60"), [(0, 0.1), (1, 0.2), (2, 0.3), (3, 0.35), (4, 0.4)]
)
def test_the_reverberation_time_is_what_was_asked(pyroomacoustics, number, rt60):
    plan, _ = draw_plan(FEW._replace(n_talkers=1), number)
    ((response,), told) = simulate(plan, rt60, RATE)
    assert told == pytest.approx(rt60, rel=0.1)
    for channel in response.T:
        # The line through the decay of energy from -5 to -35 dB.
        left = np.cumsum(np.square(channel[::-1], dtype=float))[::-1]
        decay = 10 * np.log10(left[left > 0] / left[0])
        (line,) = np.nonzero((decay < -5) & (decay > -35))
        slope = np.polyfit(line / RATE, decay[line], 1)[0]
        assert -60 / slope == pytest.approx(rt60, rel=0.15)


def test_rooms_are_read_as_they_were_simulated(few_rooms):
    rooms = RoomFolder(few_rooms, RATE)
    for seed in range(5):
        placement = rooms.draw(2, np.random.default_rng(seed))
        assert rooms.n_microphones(placement) == 2
        told = json.loads((few_rooms / placement.room / "room.json").read_text())
        plan, _ = draw_plan(FEW, int(placement.room[-6:]))
        np.testing.assert_allclose(told["talkers"], plan.talkers, atol=1e-3)
        assert told["rt60"] == pytest.approx(0.11, abs=0.03)
        for name, response in zip(
            placement.talkers, rooms.responses(placement), strict=True
        ):
            taps = direct_taps(response)
            expected = distances(plan)[int(name[-5])] / 343 * RATE
            np.testing.assert_allclose(taps - taps[0], expected - expected[0], atol=1)


def test_what_is_cut_off_has_a_millionth_of_the_energy(pyroomacoustics, monkeypatch):
    plan, rt60 = draw_plan(FEW, 3)
    responses, _ = simulate(plan, rt60, RATE)
    monkeypatch.setattr("speechbrain_peer.data.room_simulation.TAIL", 0)
    whole, _ = simulate(plan, rt60, RATE)
    for cut, uncut in zip(responses, whole, strict=True):
        np.testing.assert_array_equal(cut, uncut[: len(cut)])
        energies = np.square(uncut).sum(axis=0)
        assert (np.square(uncut[len(cut) :]).sum(axis=0) < 1.1e-6 * energies).all()
        assert len(cut) < 1.5 * rt60 * RATE


def test_processes_do_not_change_the_rooms(few_rooms, tmp_path):
    size = make_rooms(tmp_path, FEW, n_processes=2)
    assert contents(tmp_path) == contents(few_rooms)
    assert size == sum(path.stat().st_size for path in tmp_path.rglob("*.wav"))
    assert make_rooms(tmp_path, FEW) == size


def test_killed_simulation_goes_on_with_the_same_result(few_rooms, tmp_path):
    script = (
        "import sys; from speechbrain_peer.data.room_simulation import *;"
        f"make_rooms(sys.argv[1], {FEW!r}, n_processes=1)"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path], stderr=subprocess.PIPE
    )
    while running.poll() is None and not list(tmp_path.glob("*/room.json")):
        time.sleep(0.001)
    running.kill()
    running.communicate(timeout=30)
    expected = contents(few_rooms)
    assert not contents(tmp_path).keys() >= expected.keys()
    with pytest.raises(DataError, match=r"of 20 rooms, as .* interrupted"):
        RoomFolder(tmp_path, RATE)
    before = modification_times(tmp_path)
    make_rooms(tmp_path, FEW, n_processes=1)
    assert contents(tmp_path) == expected
    done = {path.parent for path in before if path.name == "room.json"}
    after = modification_times(tmp_path)
    assert done and all(before[p] == after[p] for p in before if p.parent in done)


def test_rooms_of_other_settings_are_not_mixed(few_rooms, tmp_path):
    before = modification_times(few_rooms)
    with pytest.raises(DataError, match="holds rooms of other settings"):
        make_rooms(few_rooms, FEW._replace(seed=2))
    assert modification_times(few_rooms) == before
    (tmp_path / "measured.wav").touch()
    with pytest.raises(DataError, match="is not empty and holds no simulated rooms"):
        make_rooms(tmp_path, FEW)


def test_the_command(few_rooms, tmp_path, capsys):
    arguments = "--n_rooms 20 --n_talkers 2 --n_microphones 2 --rt60 0.1 0.12 --seed 1"
    command = ["rooms", "-o", str(tmp_path), "--n_processes", "1", *arguments.split()]
    assert main(command) == 0
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.wav")) / 1e6
    assert capsys.readouterr().out == f"{tmp_path}: 20 rooms, {size:.1f} MB\n"
    assert contents(tmp_path) == contents(few_rooms)
    assert main([*command, "--layout", "table"]) == 1
    assert "holds rooms of other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rt60", "message"),
    [
        (["0.6", "0.1"], "the first time is longer than the second"),
        (["0.1", "3"], "'3' is not a time from 0.1 to 1.0 s"),
        (["a", "0.6"], "'a' is not a time"),
    ],
)
def test_wrong_times_end_with_2_in_one_line(rt60, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["rooms", "-o", str(tmp_path / "rooms"), "--rt60", *rt60])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and not (tmp_path / "rooms").exists()


def test_without_the_extra_it_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyroomacoustics", None)
    assert main(["rooms", "-o", str(tmp_path / "rooms")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith('pip install "speechbrain-peer[rooms]"')
    assert not (tmp_path / "rooms").exists()


def test_ctrl_c_ends_it_in_one_line(pyroomacoustics, tmp_path):
    arguments = ["rooms", "-o", tmp_path, "--n_processes", 2, "--rt60", 0.1, 0.12]
    code, rest = interrupt(arguments, until=b"Simulating")
    assert code == 130
    assert rest.splitlines()[-1] == "tse: interrupted"
    assert "Traceback" not in rest and "Error" not in rest
    # Even where it comes while the processes are started.
    assert len(list(tmp_path.iterdir())) < 100
