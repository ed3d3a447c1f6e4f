"""What becomes of values on their way to a device: nothing is rounded the wrong way, no order changes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from penstock.retrieval.device.values import on_sphere, rounded_up, signed
from penstock.retrieval.search.geometry import EARTH_RADIUS_KM, distance_km


@given(values=st.lists(st.floats(0, 1e300), min_size=1))
def test_norms_are_never_rounded_down_and_by_a_bit_at_most(values):
    wide = np.asarray(values)
    found = rounded_up(wide)
    assert found.dtype == np.float32 and (found.astype(np.float64) >= wide).all()
    below = np.nextafter(found, np.float32(-1)).astype(np.float64)
    assert ((below < wide) | (wide == 0)).all()


@given(values=st.lists(st.integers(0, 2**64 - 1), min_size=2))
def test_hashes_keep_their_order(values):
    hashes = np.asarray(values, np.uint64)
    assert np.argsort(signed(hashes), kind="stable").tolist() == np.argsort(hashes, kind="stable").tolist()


@given(lat=st.floats(-90, 90), lon=st.floats(-180, 180), north=st.floats(-90, 90), east=st.floats(-180, 180))
def test_chords_are_as_long_as_the_haversine_formula_says(lat, lon, north, east):
    a, b = on_sphere(np.asarray([lat, north]), np.asarray([lon, east]))
    told = distance_km(lat, lon, np.asarray([north]), np.asarray([east]))[0]
    chord = 2 * np.sin(told / EARTH_RADIUS_KM / 2)
    assert abs(np.linalg.norm(a - b) - chord) < 1e-12


def test_a_missing_place_is_not_a_number():
    assert np.isnan(on_sphere(np.asarray([np.nan]), np.asarray([3.0]))).all()
