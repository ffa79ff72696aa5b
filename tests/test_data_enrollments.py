"""Enrollment maps: drawn ones keep the rule, given ones are checked."""

import copy
from pathlib import Path

import pytest

from speechbrain_peer.data.enrollments import (
    add_absent_enrollments,
    add_enrollments,
    draw_enrollment_map,
    find_enrollment_map,
    read_enrollment_map,
    write_enrollment_map,
)
from speechbrain_peer.data.manifests import (
    build_manifest,
    read_manifest,
    scan_subset,
)
from speechbrain_peer.utils.audio import audio_length
from speechbrain_peer.utils.files import DataError

FOLDER = "wav8k/min/dev"


@pytest.fixture
def rows(prepared):
    """The dev manifest with both targets, without enrollments."""
    mixtures = scan_subset(Path(prepared.data_root, FOLDER))
    return build_manifest(prepared.data_root, FOLDER, *mixtures, 8000, "both")


def test_drawn_enrollment_is_another_utterance_of_the_speaker(rows):
    drawn = draw_enrollment_map(rows, seed=1)
    assert len(drawn) == len(rows) == 24
    for row in rows.values():
        target = row["target"]["utterance"]
        folder, mixture_id = drawn[row["mixture_id"], target].split("/")
        enrollment = mixture_id.split("_")[int(folder[1]) - 1]
        assert enrollment != target
        assert enrollment.split("-")[0] == row["target"]["speaker"]


def test_drawn_map_depends_on_the_seed_and_not_on_the_order_or_targets(rows):
    drawn = draw_enrollment_map(rows, seed=1)
    assert drawn == draw_enrollment_map(dict(reversed(rows.items())), seed=1)
    assert drawn != draw_enrollment_map(rows, seed=2)
    first = {item_id: row for item_id, row in rows.items() if item_id.endswith("_s1")}
    assert draw_enrollment_map(first, seed=1).items() <= drawn.items()


def test_enrollments_reach_the_manifest(rows, prepared, tmp_path):
    drawn = draw_enrollment_map(rows, seed=1)
    write_enrollment_map(tmp_path / "map", drawn)
    add_enrollments(rows, tmp_path / "map", FOLDER)
    for row in rows.values():
        file = drawn[row["mixture_id"], row["target"]["utterance"]]
        assert row["enrollment"] == f"{{data_root}}/{FOLDER}/{file}.wav"
        path = Path(row["enrollment"].format(data_root=prepared.data_root))
        assert audio_length(path) == row["enrollment_length"]


def test_the_absent_enrollment_is_of_nobody_in_the_mixture(rows, prepared):
    add_absent_enrollments(rows, seed=1)
    drawn = {item_id: row["absent_enrollment"] for item_id, row in rows.items()}
    for row in rows.values():
        path = Path(row["absent_enrollment"].format(data_root=prepared.data_root))
        assert audio_length(path) == row["absent_enrollment_length"]
        utterance = path.stem.split("_")[int(path.parent.name[1]) - 1]
        assert utterance.split("-")[0] not in speakers_of(row)
    # A function of seed and item, and not one talker for all.
    for seed, same in ((1, True), (2, False)):
        other = copy.deepcopy(dict(reversed(rows.items())))
        add_absent_enrollments(other, seed)
        found = {item_id: row["absent_enrollment"] for item_id, row in other.items()}
        assert (found == drawn) == same
    assert len(set(drawn.values())) > 4


def test_where_everybody_is_in_the_mixture_nobody_is_absent(rows):
    pair = speakers_of(next(iter(rows.values())))
    rows = {item_id: row for item_id, row in rows.items() if speakers_of(row) <= pair}
    add_absent_enrollments(rows, seed=1)
    assert rows and not any("absent_enrollment" in row for row in rows.values())


def speakers_of(row):
    """The speakers in a row of a manifest."""
    return {source["speaker"] for source in (row["target"], *row["interferers"])}


def test_map_without_line_for_a_target(rows, tmp_path):
    drawn = draw_enrollment_map(rows, seed=1)
    (mixture_id, target), _ = drawn.popitem()
    write_enrollment_map(tmp_path / "map", drawn)
    with pytest.raises(DataError, match=f"{mixture_id}.*{target}: has no line"):
        add_enrollments(rows, tmp_path / "map", FOLDER)


def test_unusable_enrollments_are_refused(rows, tmp_path):
    drawn = draw_enrollment_map(rows, seed=1)
    mixture_id, target = next(iter(drawn))
    interferer = next(u for u in mixture_id.split("_") if u != target)
    own, other = [
        f"s{mixture_id.split('_').index(u) + 1}/{mixture_id}"
        for u in (target, interferer)
    ]
    speaker = target.split("-")[0]
    for enrollment, reason in [
        (own, "own utterance"),
        (other, "another speaker"),
        (f"s3/{mixture_id}", "another speaker"),
        (f"s1/{speaker}-0-0_1-1-1", "does not exist"),
    ]:
        drawn[mixture_id, target] = enrollment
        write_enrollment_map(tmp_path / "map", drawn)
        with pytest.raises(DataError, match=reason) as caught:
            add_enrollments(rows, tmp_path / "map", FOLDER)
        for part in (str(tmp_path / "map"), mixture_id, enrollment):
            assert part in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        "a_b a",
        "a_b a x1/c_d",
        "a_b a s1/c_d extra",
        "a_b a s1",
        "a_b a s1/../c_d",
        "a_b a s2/e_f",
    ],
)
def test_bad_line_is_named_with_its_number(tmp_path, line):
    path = tmp_path / "map"
    path.write_text(f"a_b a s1/c_d\n\n{line}\n")
    with pytest.raises(DataError, match="line 3"):
        read_enrollment_map(path)


def test_all_bad_lines_are_told_at_once(tmp_path):
    path = tmp_path / "map"
    path.write_text("a_b a s1/c_d\n" + "a_b\n" * 13)
    with pytest.raises(DataError, match="13 rows cannot be used") as caught:
        read_enrollment_map(path)
    assert "line 11:" in str(caught.value) and "line 12:" not in str(caught.value)
    assert str(caught.value).endswith("and 3 more")


def test_names_with_spaces_are_read_as_they_are_written(tmp_path):
    drawn = {("ann bea-1_c,d", "ann bea-1"): "s2/c,e_ann bea-2", ("f_g", "f"): "s1/f_h"}
    write_enrollment_map(tmp_path / "map", drawn)
    assert read_enrollment_map(tmp_path / "map") == drawn


def test_maps_are_found_in_both_layouts(tmp_path):
    with pytest.raises(DataError, match="no enrollment map of subset test"):
        find_enrollment_map(tmp_path, "test", "wav8k/min/test")
    public = tmp_path / "wav8k" / "min" / "test" / "map_mixture2enrollment"
    write_enrollment_map(public, {})
    assert find_enrollment_map(tmp_path, "test", "wav8k/min/test") == public
    flat = tmp_path / "map_mixture2enrollment_test-clean.txt"
    write_enrollment_map(flat, {})
    assert find_enrollment_map(tmp_path, "test", "wav8k/min/test") == flat


def test_real_map_covers_the_real_mixtures(mini_librimix):
    folder = mini_librimix / "metadata" / "enrollment"
    path = find_enrollment_map(folder, "dev", FOLDER)
    assert len(read_enrollment_map(path)) == 400


def test_given_map_in_a_manifest_read_by_speechbrain(prepared):
    rows = read_manifest(prepared.manifests["dev"], prepared.data_root)
    saved = Path(prepared.manifests["dev"]).with_name("dev_enrollment_map.txt")
    for row in rows.values():
        file = read_enrollment_map(saved)[row["mixture_id"], row["target"]["utterance"]]
        assert row["enrollment"] == f"{prepared.data_root}/{FOLDER}/{file}.wav"
