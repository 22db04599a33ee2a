import pytest
from hypothesis import given
from hypothesis import strategies as st

from dandolo.config.problem import Unfit
from dandolo.config.units import duration, show_duration, show_size, size


@pytest.mark.parametrize(
    ("text", "expected"),
    [("8KiB", 8192), ("64 MiB", 64 << 20), ("10GiB", 10 << 30), ("512B", 512), (4096, 4096), ("1TiB", 1 << 40), (0, 0)],
)
def test_sizes(text, expected):
    assert size(text) == expected


@pytest.mark.parametrize(
    "text",
    ["8", "8kb", "8KB", "1.5GiB", "-1KiB", "", " 8KiB", "８KiB", "1_0KiB", True, 1.5, -1, 1 << 63, None, [], "KiB"],
)
def test_bad_sizes_are_refused_with_the_form_expected(text):
    with pytest.raises(Unfit, match="KiB"):
        size(text)


def test_a_decimal_unit_is_answered_with_the_binary_one():
    with pytest.raises(Unfit, match='write "64MiB"'):
        size("64MB")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("500ms", 0.5),
        ("10s", 10.0),
        ("1.5s", 1.5),
        ("5m", 300.0),
        ("1h", 3600.0),
        ("1d", 86400.0),
        ("0s", 0.0),
        (0, 0.0),
    ],
)
def test_durations(text, expected):
    assert duration(text) == expected


@pytest.mark.parametrize(
    "text", ["10", 10, 1.5, "10 sec", "-1s", "1h30m", "", True, float("nan"), float("inf"), {}, "s"]
)
def test_bad_durations_are_refused(text):
    with pytest.raises(Unfit):
        duration(text)


def test_a_bare_number_is_told_how_to_be_written():
    with pytest.raises(Unfit, match='"30s" for seconds'):
        duration(30)


@given(st.integers(0, 1 << 49))
def test_a_size_survives_being_shown(count):
    assert size(show_size(count)) == count


@given(st.integers(0, 10_000_000))
def test_a_duration_survives_being_shown(ms):
    assert duration(show_duration(ms / 1000)) == pytest.approx(ms / 1000)
